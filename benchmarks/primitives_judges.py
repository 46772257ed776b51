"""How often the judges that run here are right about texts of known emotion, with 95 % intervals.

    python benchmarks/primitives_judges.py --out benchmarks/results/primitives_judges.json     (SmolLM2; ten minutes)

The bundled texts: 75 scenes of 15 emotions, and 60 pairs of 12 others, of which "show" evokes the feeling and "tell"
names it. Judges choose one of all 27 emotions; a guess is right once in 27. Beside it, how often each says yes when
asked whether the text expresses its emotion, and when asked about one drawn from the other 26. "majority" is the panel:
more than half of its judges right. An answer that cannot be read is a miss. The `examples` judge compares with these
very texts, and never with the one that it judges.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from interp.model import HookedModel
from interp.sealing import write_json
from interp.stats import wilson
from saes.primitives.categories import categories
from saes.primitives.coverage import judge_validity
from saes.primitives.data import scenes, show_tell
from saes.primitives.local_judges import local_panel
from saes.primitives.panel_runs import PanelRun

Known = Sequence[tuple[str, str]]


def yes_rates(run: PanelRun, texts: Known) -> dict[str, tuple[int, int]]:
    """By judge, how many texts get a yes about their own emotion, and about another one."""
    rng, counts = np.random.default_rng(0), {name: [0, 0] for name in run.names}
    others = [str(rng.choice([name for name in run.emotions.names if name != emotion])) for emotion, _ in texts]
    for side, asked in enumerate(([emotion for emotion, _ in texts], others)):
        for emotion in dict.fromkeys(asked):
            about = [text for (_, text), name in zip(texts, asked, strict=True) if name == emotion]
            for answer in run.says(about, emotion, seed=0):
                for judge, yes in answer.items():
                    counts[judge][side] += yes is True
    return {name: (own, other) for name, (own, other) in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--every", type=int, default=1, help="take every n-th text only")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    known = categories()
    run = PanelRun(local_panel(HookedModel.load(o.model), known), known)
    kinds: dict[str, Known] = {
        "scene": [(one.emotion, one.text) for one in scenes()],
        "show": [(pair.emotion, pair.show) for pair in show_tell()],
        "tell": [(pair.emotion, pair.tell) for pair in show_tell()],
    }
    lines = []
    print(f"{'texts':6} {'judge':10} {'right':>8}  95 % interval  unread  yes, own  yes, other")
    for kind, all_texts in kinds.items():
        texts = all_texts[:: o.every]
        yes = yes_rates(run, texts)
        for judge, (right, n, unread) in judge_validity(run, texts).items():
            low, high = wilson(right, n)
            own, other = yes.get(judge, (None, None))
            lines.append({"texts": kind, "judge": judge, "right": right, "n": n, "low": low, "high": high,
                          "unread": unread, "yes_own": own, "yes_other": other})  # fmt: skip
            rates = f"{right:>4}/{n:<3}  {low:.2f} to {high:.2f}   {unread:>6}  {own!s:>8}  {other!s:>10}"
            print(f"{kind:6} {judge:10} {rates}")
    if o.out is not None:
        write_json(o.out, {"model": o.model, "options": len(known), "chance": 1 / len(known), "rows": lines})


if __name__ == "__main__":
    main()
