"""The opponent of matmul.ts: x·Wᵀ by torch.matmul, W lying as it is faster, as rows or as columns.

usage: matmul.py - --rows N --inputs K --outputs M [--repetitions 10] [--precision float32|bfloat16] [--threads 2]
Every input line asks for the repetitions once more.
"""
import torch
from peer import Clock, arguments, serve

parser = arguments()
for name, default in [("rows", 1024), ("inputs", 768), ("outputs", 2304), ("repetitions", 10)]:
    parser.add_argument(f"--{name}", type=int, default=default)
options = parser.parse_args()
torch.set_num_threads(options.threads)
dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
x = torch.rand(options.rows, options.inputs, dtype=dtype) - 0.5
rows = torch.rand(options.outputs, options.inputs, dtype=dtype) - 0.5
columns = rows.T.contiguous()
y = torch.empty(options.rows, options.outputs, dtype=dtype)


@torch.no_grad()
def multiply(weight):
    for _ in range(options.repetitions):
        torch.matmul(x, weight, out=y)


def seconds(weight):
    multiply(weight)
    clock = Clock()
    multiply(weight)
    return clock.read()["seconds"]


faster = min([rows.T, columns], key=lambda weight: min(seconds(weight) for _ in range(3)))
serve(lambda _: faster, lambda weight: multiply(weight) or {"columns": weight is columns})
