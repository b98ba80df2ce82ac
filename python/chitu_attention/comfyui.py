# SPDX-License-Identifier: Apache-2.0
"""Attention of ComfyUI's models by chitu_attention. As a node, in a file custom_nodes/chitu_attention_node.py:

    from chitu_attention.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS  # noqa: F401

or from Python, for a ModelPatcher:

    model = chitu_attention.comfyui.patched(model, "chitu")

Calls with a mask, or for which the model forbids low precision, go to the attention that ComfyUI would use, and are counted. Without a
node, `python -m chitu_attention.shim -- main.py --use-sage-attention` serves ComfyUI's own switch."""

from ._plugin import Backend

_KEY = "optimized_attention_override"
# Of kwargs: they say nothing about what is computed.
_HARMLESS = {"transformer_options", "_inside_attn_wrapper", "preferred_attention"}


class Override:
    """A function for transformer_options["optimized_attention_override"]. report: of its calls.

    method, strict, options: as in chitu_attention.sdpa(), but what goes to PyTorch there goes to ComfyUI's attention here."""

    def __init__(self, method="chitu", *, strict=False, **options):
        self._backend = Backend(method, strict, options)
        self.report = self._backend.report

    def __call__(self, func, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
        result = self._attend(q, k, v, heads, mask, attn_precision, skip_reshape, skip_output_reshape, kwargs)
        if isinstance(result, str):
            self._backend.to_torch(result)
            return func(q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape,
                        skip_output_reshape=skip_output_reshape, **kwargs)
        self._backend.count()
        return result

    def _attend(self, q, k, v, heads, mask, attn_precision, skip_reshape, skip_output_reshape, kwargs):
        """The result, or why ComfyUI must compute it. attn_precision needs no look: scores are float32 or exact integers here."""
        if mask is not None:
            return "mask is given"
        if kwargs.get("low_precision_attention", True) is False and self._backend.block.method != "exact":
            return "low_precision_attention is False"
        unknown = kwargs.keys() - _HARMLESS - {"scale", "enable_gqa", "low_precision_attention"}
        if unknown:
            return f"{sorted(unknown)[0]} is given, which is not known"
        if not skip_reshape:  # (batch, tokens, heads * dim)
            dim = q.shape[-1] // heads
            q, k, v = (x.unflatten(-1, (-1, dim)).transpose(1, 2) for x in (q, k, v))
        obstacle = self._backend.obstacle(q, k, v)
        if obstacle is not None:
            return obstacle
        if q.shape[1] != k.shape[1] and not kwargs.get("enable_gqa", False):
            return "query and key differ in heads"
        out = self._backend.attention(q, k, v, scale=kwargs.get("scale"))
        return out if isinstance(out, str) or skip_output_reshape else out.transpose(1, 2).flatten(2)


def patched(model, method="chitu", *, strict=False, **options):
    """A clone of a ModelPatcher that computes attention by `method`; its override is in the clone's transformer_options."""
    model = model.clone()
    given = model.model_options.get("transformer_options", {})
    if _KEY in given and not isinstance(given[_KEY], Override):
        raise ValueError(f"the model has an {_KEY} of {given[_KEY]!r} already: remove that node")
    # clone() may share what is inside model_options.
    model.model_options = {**model.model_options, "transformer_options": {**given, _KEY: Override(method, strict=strict, **options)}}
    return model


class ChituAttention:
    """A node: a model goes in, and comes out with its attention computed by a method of chitu_attention."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches"
    DESCRIPTION = "Computes attention quantised, by chitu_attention."

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802: ComfyUI's name
        from ._attention import methods
        names = list(methods())
        return {"required": {"model": ("MODEL",), "method": (names, {"default": "chitu"})}}

    def patch(self, model, method):
        return (patched(model, method),)


NODE_CLASS_MAPPINGS = {"ChituAttention": ChituAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"ChituAttention": "Chitu Attention"}
