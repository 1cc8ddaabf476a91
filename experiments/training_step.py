"""Time a training step beside its FP32 twin's: python -m experiments.training_step [model=NAME] [quantizer=NAME].

Both networks are timed in turn in one process, with the same threads, data and optimizer. The ratio is the quantized
network's time over its twin's.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from experiments import cli
from experiments.results import write_json
from experiments.timing import pair


def task(config: DictConfig) -> None:
    """Measure what the config names."""
    from bnn.training import provenance
    from experiments.runs import fp32_twin
    from experiments.steps import described, make_network, make_step, milliseconds, on_threads

    threads = on_threads(config.threads)
    quantized = make_network(config)
    ours, fp32 = pair(make_step(quantized, config), make_step(fp32_twin(config.model).train(), config), config.seconds)
    ratio = {"best": round(ours.best / fp32.best, 3), "median": round(ours.median / fp32.median, 3)}
    print(
        f"{config.quantizer.name}: {1e3 * ours.median:.1f} ms a step, FP32 twin {1e3 * fp32.median:.1f} ms, "
        f"ratio {ratio['median']:.2f} (best {ratio['best']:.2f})"
    )
    if config.output is not None:
        content = {
            **described(config, threads),
            "quantized_ms": milliseconds(ours),
            "fp32_ms": milliseconds(fp32),
            "ratio": ratio,
            **provenance(),
        }
        write_json(Path(config.output), content)
        print(f"written: {config.output}")


def main() -> None:
    """Entry point."""
    cli.run(task, "training_step", expected=(OSError, ValueError))


if __name__ == "__main__":
    sys.exit(main())
