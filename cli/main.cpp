// SPDX-License-Identifier: Apache-2.0
// The chitu command. A mistake of the user's is one line on stderr and exit status 2.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "chitu/chitu.h"
#include "cli/commands/commands.h"

namespace {

constexpr int failure = 2;

// Prints one line, whatever bytes the name of a file or a tensor contains.
int fail(std::string_view what) {
  std::string line;
  while (!what.empty()) {
    const std::size_t end = what.find('\n');
    const std::string_view part = what.substr(0, end);
    if (!line.empty() && !part.empty()) line += line.ends_with(':') ? " " : "; ";
    for (const char c : part) line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    what.remove_prefix(end == what.npos ? what.size() : std::min(what.find_first_not_of(" \n", end), what.size()));
  }
  std::fprintf(stderr, "chitu: error: %s\n", line.c_str());
  return failure;
}

// The message for words that no command takes.
std::string no_command(const CLI::App& app, const CLI::ExtrasError& error) {
  const std::vector<std::string> words = app.remaining();
  if (words.empty() || words.front().starts_with('-')) return error.what();
  std::string names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names += (names.empty() ? "" : ", ") + command->get_name();
  return "there is no command '" + words.front() + "'; the commands are " + names;
}

// The command line as it could be typed again: words with other than harmless characters are in quotes.
std::string command_line(int argc, char** argv) {
  constexpr std::string_view harmless = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=,.:/+@%";
  std::string line = "chitu";
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const bool plain = !word.empty() && word.find_first_not_of(harmless) == word.npos;
    line += plain ? " " : " '";
    for (const char c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    if (!plain) line += '\'';
  }
  return line;
}

int parse_and_run(CLI::App& app, int argc, char** argv) {
  int status = 0;
  try {
    app.parse(argc, argv);
    chitu::require(!app.get_subcommands().empty(), "no command is given; chitu --help lists them");
  } catch (const CLI::RuntimeError& verdict) {
    status = verdict.get_exit_code();
  } catch (const CLI::ExtrasError& error) {
    return fail(app.get_subcommands().empty() ? no_command(app, error) : error.what());
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) return fail(error.what());
    app.exit(error);  // --help, --version
  } catch (const std::bad_alloc&) {
    return fail("out of memory");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
  std::cout.flush();
  return std::fflush(stdout) == 0 && std::cout ? status : fail("standard output cannot be written");
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow further becomes an error to report
  CLI::App app("Quantised attention for long sequences, with honest tables of speed and accuracy");
  app.set_version_flag("--version", "chitu " CHITU_VERSION);
  app.require_subcommand(0, 1);  // 0 is refused after parsing, so that a word that is no command is named
  chitu::cli::add_run(app);
  chitu::cli::add_bench(app, command_line(argc, argv));
  chitu::cli::add_accuracy(app, command_line(argc, argv));
  chitu::cli::add_plan(app);
  chitu::cli::add_explain(app);
  chitu::cli::add_methods(app);
  chitu::cli::add_doctor(app);
  return parse_and_run(app, argc, argv);
}
