"""A quantized layer, and the graph that autograd keeps of layers."""

import bitsandbytes


def layer_of(weight, device="cpu"):
    """A linear layer with this weight in NF4, whose scales are not quantized yet."""
    layer = bitsandbytes.nn.Linear4bit(*reversed(weight.shape), bias=False, quant_type="nf4", compress_statistics=False)
    layer.weight = bitsandbytes.nn.Params4bit(weight, quant_type="nf4", compress_statistics=False)
    return layer.to(device)


def graph_of(end):
    """The nodes of autograd's graph up to `end`."""
    seen, waiting = set(), [end]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [below for below, _ in node.next_functions]
