#!/usr/bin/env python3
"""What simulating costs, against ranks and against units, as an SVG (docs/images/simulate_cost.svg).

  tools/simulate/plot_cost.py build/release/bin/memcalc docs/images/simulate_cost.svg

Each point is the processor time of `memcalc simulate`, the least of some runs, less that of the same on one rank, which is
mostly the program's start. Needs nothing but Python.
"""
import json
import math
import resource
import subprocess
import sys
import tempfile

RANKS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
UNITS = [10, 18, 34, 66, 130, 258]  # an embedding, blocks, a head
RUNS = 9
FONT = "font-family='system-ui, sans-serif'"


def processor_seconds(memcalc, model, ranks):
    words = [memcalc, "simulate", model, "--gpus", str(ranks), "--zero", "3", "--seq", "4096", "--json"]
    least = math.inf
    for _ in range(RUNS if ranks <= 1024 else 3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode
        if status not in (0, 1):  # 1: it does not fit, which is no matter here
            sys.exit(f"{' '.join(words)}: exit status {status}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def seconds(memcalc, model, ranks):
    return processor_seconds(memcalc, model, ranks) - processor_seconds(memcalc, model, 1)


def llama_of(folder, units):
    path = f"{folder}/llama-{units}.json"
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
              "intermediate_size": 11008, "num_hidden_layers": units - 2, "num_attention_heads": 32,
              "num_key_value_heads": 32, "tie_word_embeddings": False}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)
    return path


def panel(left, title, label, points):
    """Both axes are logarithmic; the dashed line is what is linear from the first point on."""
    top, width, height = 64, 350, 220
    x_low, x_high = (math.log10(v) for v in (points[0][0] / 1.3, points[-1][0] * 1.3))
    linear = points[0][1] * points[-1][0] / points[0][0]
    y_low = math.floor(math.log10(points[0][1]))
    y_high = math.ceil(math.log10(max(points[-1][1], linear)))

    def x(value):
        return left + width * (math.log10(value) - x_low) / (x_high - x_low)

    def y(value):
        return top + height * (1 - (math.log10(value) - y_low) / (y_high - y_low))

    parts = [f"<text x='{left}' y='{top - 14}' {FONT} font-size='13' font-weight='bold'>{title}</text>"]
    for power in range(y_low, y_high + 1):
        at = y(10.0 ** power)
        name = f"{10 ** power} s" if power >= 0 else f"{10 ** (power + 3)} ms" if power >= -3 else f"{10 ** (power + 6)} us"
        parts.append(f"<line x1='{left}' y1='{at:.1f}' x2='{left + width}' y2='{at:.1f}' stroke='#dddddd'/>")
        parts.append(f"<text x='{left - 6}' y='{at + 4:.1f}' {FONT} font-size='11' text-anchor='end'>{name}</text>")
    for value, _ in points:
        parts.append(f"<text x='{x(value):.1f}' y='{top + height + 16}' {FONT} font-size='11' "
                     f"text-anchor='middle'>{value:,}</text>")
    parts.append(f"<text x='{left + width / 2}' y='{top + height + 34}' {FONT} font-size='11' fill='#555555' "
                 f"text-anchor='middle'>{label}</text>")
    parts.append(f"<line x1='{x(points[0][0]):.1f}' y1='{y(points[0][1]):.1f}' x2='{x(points[-1][0]):.1f}' "
                 f"y2='{y(linear):.1f}' stroke='#999999' stroke-dasharray='6 4'/>")
    path = " ".join(f"{x(v):.1f},{y(s):.1f}" for v, s in points)
    parts.append(f"<polyline points='{path}' fill='none' stroke='#0072b2' stroke-width='2'/>")
    parts += [f"<circle cx='{x(v):.1f}' cy='{y(s):.1f}' r='3.5' fill='#0072b2'><title>{v:,}: {s * 1e3:.2f} ms</title>"
              "</circle>" for v, s in points]
    return "\n".join(parts)


def main():
    memcalc, path = sys.argv[1:]
    ranks = [(n, seconds(memcalc, "llama-2-7b", n)) for n in RANKS]
    with tempfile.TemporaryDirectory() as folder:
        units = [(n, seconds(memcalc, llama_of(folder, n), 64)) for n in UNITS]
    title = "One step at ZeRO stage 3, simulated on one core"
    with open(path, "w", encoding="utf-8") as file:
        file.write("<svg xmlns='http://www.w3.org/2000/svg' width='900' height='335' viewBox='0 0 900 335' role='img'>\n"
                   f"<title>{title}</title>\n<rect width='900' height='335' fill='#ffffff'/>\n"
                   f"<text x='20' y='28' {FONT} font-size='17' font-weight='bold'>{title}</text>\n"
                   + panel(75, "Llama-2-7B (34 units)", "ranks; dashed: linear from the first point", ranks) + "\n"
                   + panel(515, "64 ranks, Llama-2-7B's blocks", "units; dashed: linear from the first point", units)
                   + "\n</svg>\n")
    for name, points in (("ranks", ranks), ("units", units)):
        for value, time in points:
            print(f"{value:6} {name}: {time * 1e3:9.2f} ms, {time / value * 1e6:7.1f} us each")


if __name__ == "__main__":
    main()
