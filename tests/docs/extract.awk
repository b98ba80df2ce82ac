# SPDX-License-Identifier: Apache-2.0
# Writes the N-th code block of a language in a Markdown file to PREFIX_N.SUFFIX and prints the names.
#   awk -v language=cpp -v prefix=out/readme -v suffix=cpp -f extract.awk README.md
$0 == "```" language {
  inside = 1
  file = prefix "_" ++count "." suffix
  printf "" > file
  print file
  next
}
/^```/ { inside = 0 }
inside { print > file }
