"""Measurements that the Medha paper's authors published, in seconds and tokens.

Isolated requests and shares on time are from the logs of their load harness (github.com/project-vajra/veeksha, branch
users/amey/loongserve_test, commit 057fcfc9, Apache-2.0): Llama-3 8B on 16 A100 as TP8 x PP2, Sarathi-Serve with chunks
of 2,048 and of 512 tokens. Everything else is from the paper, arXiv 2409.17264.
"""

from __future__ import annotations

KI = 1024

TTFT_2048 = {
    512: 0.0502, 768: 0.0533, 1024: 0.0569, 1536: 0.0605, 2 * KI: 0.0665, 3 * KI: 0.0958, 4 * KI: 0.1099,
    6 * KI: 0.1530, 8 * KI: 0.2011, 12 * KI: 0.2843, 16 * KI: 0.3712, 24 * KI: 0.5534, 32 * KI: 0.7485,
    48 * KI: 1.2018, 64 * KI: 1.7037, 96 * KI: 2.9668, 128 * KI: 4.4979, 192 * KI: 8.5405, 256 * KI: 13.839,
    384 * KI: 28.219, 512 * KI: 47.219, 640 * KI: 73.083, 768 * KI: 100.70, 896 * KI: 135.89, 1024 * KI: 175.46,
}  # fmt: skip
TTFT_512 = {
    512: 0.0511, 1024: 0.0838, 2 * KI: 0.1611, 4 * KI: 0.2996, 8 * KI: 0.5572, 16 * KI: 1.1076, 32 * KI: 2.3352,
    64 * KI: 4.7389, 128 * KI: 11.590, 256 * KI: 35.702, 512 * KI: 130.08, 768 * KI: 287.77, 1024 * KI: 501.01,
}  # fmt: skip
# per output token of an isolated request, chunk 2,048
TPOT_2048 = {2 * KI: 0.0075, 8 * KI: 0.0113, 32 * KI: 0.0342, 128 * KI: 0.0424, 512 * KI: 0.0936, 1024 * KI: 0.1870}

# shares of requests on time, max(1.5 x isolated, 0.5 s): by chunk, percentage of long requests, requests a second
ATTAINMENT = {
    2048: {"0": {0.25: 1.0, 0.75: 0.999, 1.25: 0.995}, "1": {0.25: 0.823, 0.75: 0.087},
           "5": {0.25: 0.359, 0.75: 0.102, 1.25: 0.043}},
    512: {"0": {0.25: 1.0, 0.75: 0.984, 1.25: 0.729}, "1": {0.25: 0.550, 0.75: 0.103, 1.25: 0.101},
          "5": {0.25: 0.278, 0.75: 0.016, 1.25: 0.006}},
}  # fmt: skip

# 8B at 1M tokens on H100: time of context parallelism over time of stages, by devices
SPP_AGAINST_RING = {8: 1.10, 16: 1.08, 32: 1.08, 64: 1.29, 128: 1.64}
SPP_EFFICIENCY_8B, SPP_EFFICIENCY_70B = 0.80, 0.85  # at most stages; 70B at eight
SPP_DECODE_COST = 1.16  # of eight stages
KVP_TPOT_SAVED = 0.40  # 10M tokens, four stages
KVP_TOKENS_PER_S = 30.0
TBT_10M_S = 0.030  # at most, first version of the paper
TPOT_2D_OVER_3D = 2.0  # more than; 70B, 64 H100, 1.75 requests/s
PACKING = (1.6, 1.8)  # times more with several prefills in a batch
SMALL_CHUNK = 1.11  # chunk 32 over chunk 2048 at 1M
STATIC_512_TICK_S = 0.250  # a chunk of 512 at 1M of context, 8B on 8 H100
LOONGSERVE_MEDIAN, LOONGSERVE_TAIL, LOONGSERVE_THROUGHPUT = 30.0, 174.0, 5.7  # 5 % long, 0.75 requests/s
CAPACITY, LOONGSERVE_CAPACITY = 1.25, 0.25  # requests a second, 5 % long
P90_TTFT_S = 10.0  # below, 5 % long
