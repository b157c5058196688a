"""PyTorch on the same work as bench/cuda/benches.ts: a JSON line of sizes in, a JSON line of seconds by CUDA events out.

Every answer: {"seconds": [...], "peakBytes": memory beyond the inputs} or {"error": "..."}. The first line says what is here.
"""
import json
import sys


def say(message):
    print(json.dumps(message), flush=True)


try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    say({"unavailable": str(error)})
    sys.exit(0)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16


def uniform(*shape, scale=1.0, dtype=BF16, grad=False):
    return ((2 * torch.rand(*shape, device=DEVICE) - 1) * scale).to(dtype).requires_grad_(grad)


def backward_of(forward, inputs, gradient):
    """A function that computes the gradients of `inputs` alone: the graph is made before, and kept."""
    output = forward()
    return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


def linear(w):
    x, weight = uniform(w["rows"], w["inputs"]), uniform(w["outputs"], w["inputs"], scale=0.02)
    return lambda: F.linear(x, weight)


def lora(w):
    x, weight = uniform(w["rows"], w["inputs"]), uniform(w["outputs"], w["inputs"], scale=0.02)
    a, b = uniform(w["rank"], w["inputs"], scale=0.02), uniform(w["outputs"], w["rank"], scale=0.02)
    return lambda: F.linear(x, weight) + 2 * F.linear(F.linear(x, a), b)


def linear_backward(w):
    x, weight = uniform(w["rows"], w["inputs"], grad=True), uniform(w["outputs"], w["inputs"], scale=0.02, grad=True)
    return backward_of(lambda: F.linear(x, weight), [x, weight], uniform(w["rows"], w["outputs"]))


def attention_inputs(w, grad):
    def make(heads):
        return uniform(w["sequences"], heads, w["length"], w["headDim"], grad=grad)

    return make(w["heads"]), make(w["kvHeads"]), make(w["kvHeads"])


def attention(w):
    q, k, v = attention_inputs(w, False)
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention_backward(w):
    inputs = attention_inputs(w, True)
    q, k, v = inputs
    gradient = uniform(w["sequences"], w["heads"], w["length"], w["headDim"])
    forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return backward_of(forward, list(inputs), gradient)


def rms_norm(w):
    x, weight = uniform(w["rows"], w["cols"]), uniform(w["cols"])
    return lambda: F.rms_norm(x, (w["cols"],), weight, 1e-5)


def rms_norm_backward(w):
    x, weight = uniform(w["rows"], w["cols"], grad=True), uniform(w["cols"], grad=True)
    return backward_of(lambda: F.rms_norm(x, (w["cols"],), weight, 1e-5), [x, weight], uniform(w["rows"], w["cols"]))


def layer_norm(w):
    x, weight, bias = uniform(w["rows"], w["cols"]), uniform(w["cols"]), uniform(w["cols"])
    return lambda: F.layer_norm(x, (w["cols"],), weight, bias, 1e-5)


def layer_norm_backward(w):
    inputs = [uniform(w["rows"], w["cols"], grad=True), uniform(w["cols"], grad=True), uniform(w["cols"], grad=True)]
    x, weight, bias = inputs
    return backward_of(lambda: F.layer_norm(x, (w["cols"],), weight, bias, 1e-5), inputs, uniform(w["rows"], w["cols"]))


def gated_silu(w):
    gate, up = uniform(w["rows"], w["cols"]), uniform(w["rows"], w["cols"])
    return lambda: F.silu(gate) * up


def adam_w(w):
    parameter = uniform(w["count"], dtype=torch.float32, grad=True)
    parameter.grad = uniform(w["count"], dtype=torch.float32)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.01, fused=True)
    return optimizer.step


def squared_norm(w):
    x = uniform(w["count"], dtype=torch.float32)
    return lambda: torch.sum(x * x, dtype=torch.float64)


def head(w, grad):
    x, weight = uniform(w["rows"] - 1, w["cols"], grad=grad), uniform(w["vocab"], w["cols"], scale=0.02)
    tokens = torch.arange(w["rows"] - 1, device=DEVICE) * 7919 % w["vocab"]
    return x, lambda: F.cross_entropy(F.linear(x, weight).float(), tokens, reduction="none")


def log_prob(w):
    return head(w, False)[1]


def log_prob_backward(w):
    """With the forward pass, as the op computes the logits again."""
    x, forward = head(w, True)
    gradient = uniform(w["rows"] - 1, dtype=torch.float32)
    return lambda: torch.autograd.grad(forward(), [x], gradient)


KINDS = {
    "linear": linear,
    "lora": lora,
    "linearBackward": linear_backward,
    "attention": attention,
    "attentionBackward": attention_backward,
    "rmsNorm": rms_norm,
    "rmsNormBackward": rms_norm_backward,
    "layerNorm": layer_norm,
    "layerNormBackward": layer_norm_backward,
    "gatedSilu": gated_silu,
    "adamW": adam_w,
    "squaredNorm": squared_norm,
    "logProb": log_prob,
    "logProbBackward": log_prob_backward,
}


def measure(w):
    """Seconds of each repetition; each of `copies` sets of inputs has its turn."""
    works = [KINDS[w["kind"]](w) for _ in range(w["copies"])]
    if DEVICE == "cpu":  # sizes that fit a test of the protocol
        for work in works:
            work()
        return {"seconds": [], "peakBytes": 0}
    for work in works:
        work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(w["repetitions"])]
    torch.cuda._sleep(20_000_000)  # the host queues everything meanwhile
    for i, (begin, end) in enumerate(events):
        begin.record()
        works[i % len(works)]()
        end.record()
    torch.cuda.synchronize()
    seconds = [1e-3 * begin.elapsed_time(end) for begin, end in events]
    return {"seconds": seconds, "peakBytes": torch.cuda.max_memory_allocated() - before}


say({"ready": f"torch {torch.__version__}", "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"})
for line in sys.stdin:
    try:
        say(measure(json.loads(line)))
    except Exception as error:  # noqa: BLE001: whatever it is, the next row may work
        say({"error": f"{type(error).__name__}: {error}"[:500]})
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
