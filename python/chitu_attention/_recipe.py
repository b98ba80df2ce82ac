# SPDX-License-Identifier: Apache-2.0
"""A quantisation method as a value: chitu::Recipe of include/chitu/method.h, whose words these are."""

from collections import namedtuple
from struct import Struct

_DTYPES = ("f32", "f16", "bf16", "i8", "u8", "e4m3")
_SCALINGS = ("none", "tokens", "head", "channel", "tile")
_CENTRES = ("none", "mean", "sampled_mean")
_SUMS = ("unrounded", "rounded")
_LAYOUT = Struct("=22if3i")  # chitu_recipe of include/chitu/c.h


def _number(words, word, what):
    try:
        return words.index(word)
    except ValueError:
        raise ValueError(f"recipe: {what} is {word!r}; it must be one of {', '.join(words)}") from None


class Quant(namedtuple("Quant", "dtype scaling groups centre rotated sorted",
                       defaults=("f32", "none", (1, 1), "none", False, False))):
    """How an operand is stored.

    dtype: f32 (as it came), f16, i8, e4m3. scaling: none, tokens, head, channel, tile. groups: (block, lanes) of tokens that share a
    scale. centre: none, mean, sampled_mean. rotated: signs and a Hadamard matrix over the channels. sorted: keys of a
    tile share scales by their size."""

    __slots__ = ()

    def replace(self, **changes):
        return self._replace(**changes)

    def _numbers(self):
        block, lanes = self.groups
        return (_number(_DTYPES, self.dtype, "dtype"), _number(_SCALINGS, self.scaling, "scaling"), block, lanes,
                _number(_CENTRES, self.centre, "centre"), bool(self.rotated), bool(self.sorted))


class Weights(namedtuple("Weights", "dtype top by_tile output lse", defaults=("f32", 1.0, False, "unrounded", "unrounded"))):
    """How the weights meet the values. dtype, top: their type and the largest one's stored value. by_tile: relative to the row's maximum
    in its tile of keys. output, lse: which sum normalises the output and makes the LSE, of unrounded or rounded weights."""

    __slots__ = ()

    def replace(self, **changes):
        return self._replace(**changes)


class Recipe(namedtuple("Recipe", "query key value weights", defaults=(Quant(), Quant(), Quant(), Weights()))):
    """A quantisation method as a value, for `method=`: start from one of methods(), `replace()` what is to differ.

        recipe = chitu_attention.methods()["chitu"].recipe
        recipe = recipe.replace(query=recipe.query.replace(rotated=False), key=recipe.key.replace(rotated=False))"""

    __slots__ = ()

    def replace(self, **changes):
        return self._replace(**changes)

    def _numbers(self):
        """The fields of chitu_recipe in their order."""
        w = self.weights
        return (*self.query._numbers(), *self.key._numbers(), *self.value._numbers(), _number(_DTYPES, w.dtype, "dtype"), w.top, bool(w.by_tile),
                _number(_SUMS, w.output, "output"), _number(_SUMS, w.lse, "lse"))

    @property
    def _packed(self):
        return _LAYOUT.pack(*self._numbers())

    @classmethod
    def _of_numbers(cls, numbers):
        quants = [Quant(_DTYPES[d], _SCALINGS[s], (block, lanes), _CENTRES[c], bool(r), bool(by_size))
                  for d, s, block, lanes, c, r, by_size in (numbers[i:i + 7] for i in (0, 7, 14))]
        dtype, top, by_tile, output, lse = numbers[21:]
        return cls(*quants, Weights(_DTYPES[dtype], float(top), bool(by_tile), _SUMS[output], _SUMS[lse]))

    @classmethod
    def _unpacked(cls, packed):
        return cls._of_numbers(_LAYOUT.unpack(packed))
