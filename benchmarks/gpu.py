"""Training steps on a GPU: regbench's ways, plain Keras and PyTorch. `bench.py gpu` calls it.

    python benchmarks/gpu.py WAY PREPARED SIZE:BATCH ...

compiles a step of each case, prints "ready", waits for a line on stdin, times the steps and prints JSON. This lets the
ways compile side by side while each is timed alone.
"""

import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import measure  # noqa: E402

CASES = ("32:128", "224:32", "224:256")
WARM_UP = 20
SECONDS = 2
"""About how long the steps of a case are timed."""

LOOK_STEPS = 10
"""Python waits for the GPU once in this many steps, as in a training by regbench."""

XLA, AUTOTUNED = "regbench, XLA", "regbench, XLA, train.deterministic: false"
REGBENCH = {
    XLA: {"jit": True},
    "regbench, XLA, train.precision: bfloat16": {"jit": True, "precision": "bfloat16"},
    AUTOTUNED: {"jit": True, "deterministic": False},
    "regbench, no XLA": {},
}
KERAS, PYTORCH, AGAIN = "plain Keras, no XLA", "PyTorch, channels last", "regbench, XLA, started again"
ONLY = {AUTOTUNED: CASES[-1:], AGAIN: CASES[:2]}
"""{way: the only cases that it runs}. Autotuning all cases would be slow; so the whole takes about four minutes."""

PATIENCE = 150
"""Seconds to wait for a way to compile, and again for its times."""


# One way, in a process of its own


def regbench_steps(size, batch, data, **options):
    """A function that trains `count` steps and returns the time after every tenth one, in seconds."""
    import keras

    from regbench.data import arrays
    from regbench.training import batch_norm, model

    training = arrays.load("train", Path(data))
    plan = measure.plan_of(size, batch, len(training), 1, **options)
    keras.config.set_dtype_policy("float32" if plan["train"].precision == "float32" else "mixed_bfloat16")
    trained = model.build(plan, training.images.shape[1:], len(training.info["classes"]))
    model.compile(trained, plan["train"], 1000)
    batch_norm.PopulationStatistics(trained, training, training, plan)
    return lambda count: keras_steps(trained, repeated(training, batch), count)


def plain_keras_steps(size, batch, data):
    import article

    from regbench.data import arrays

    training = arrays.load("train", Path(data))
    plan = measure.plan_of(size, batch, len(training), 1)
    trained = article.build(plan, training.images.shape[-1], len(training.info["classes"]), 1000)
    # On a GPU, Keras would use XLA by default, and compiling this network with it takes minutes.
    trained.jit_compile = False
    batches = article.batches(training.images, training.labels, size, batch, training=True, flip=True)
    return lambda count: keras_steps(trained, batches.repeat(), count)


def repeated(training, batch):
    """Batches of regbench's own pipeline, epoch after epoch, without an epoch's last batch if it is smaller."""
    from regbench.data import arrays

    epoch = arrays.training_batches(training, batch_size=batch, seed=0, flip=True, epoch=0)
    return epoch.take(len(training) // batch).repeat()


def keras_steps(trained, batches, count):
    import keras

    moments = []

    def look(batch, logs):
        if (batch + 1) % LOOK_STEPS == 0:
            float(logs["loss"])  # waits for the GPU
            moments.append(time.perf_counter())

    trained.fit(
        batches, steps_per_epoch=count, verbose=0, callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=look)]
    )
    return moments


def pytorch_steps(size, batch, data):
    trained = measure.pytorch_steps(data, size, batch, 10**9)

    def run(count):
        moments = []
        for step in range(count):
            next(trained)
            if step % LOOK_STEPS == 0:
                moments.append(time.perf_counter())
        return moments

    return run


def one_way(way, data, *cases):
    if way == PYTORCH:
        import torch_network  # noqa: F401 (before the clock starts)

        steps_of = pytorch_steps
    elif way == KERAS:
        import article  # noqa: F401

        steps_of = plain_keras_steps
    else:
        from regbench import runtime

        options = REGBENCH.get(way, REGBENCH[XLA])
        runtime.start(options.get("deterministic", True), options.get("jit", False))
        steps_of = functools.partial(regbench_steps, **options)
    found, ready = {}, []
    for case in cases:
        begun, (size, batch) = time.perf_counter(), map(int, case.split(":"))
        run = steps_of(size, batch, data)
        run(WARM_UP)
        found[case] = {"compiled": round(time.perf_counter() - begun, 1)}
        ready.append((case, batch, run))
    print("ready", flush=True)
    sys.stdin.readline()
    for case, batch, run in ready:
        tens = max(2, min(30, round(SECONDS / measure.median_step(run(WARM_UP)))))
        found[case] |= {"rate": LOOK_STEPS * batch / measure.median_step(run(LOOK_STEPS * tens)), "steps": 10 * tens}
    print(json.dumps(found), flush=True)


# All of them


def table(data, environment):
    """The results that docs/gpu.md shows as a table."""
    from regbench.review import blocks

    found = compare(data, environment)

    def cell(measured):
        return f"{measured['rate']:,.0f} ({measured['compiled']:.0f} s)" if measured else "–"

    heading = ["images/s", *("{} px, batch {}".format(*case.split(":")) for case in CASES)]
    note = (
        "The median of ten steps at a time, for about 2 seconds, each way timed alone, n = 1. In "
        "brackets: seconds until the first 20 steps had been made, while other ways compiled too; the last line alone"
    )
    rows = [[way, *(cell(cells.get(case)) for case in CASES)] for way, cells in found.items()]
    return {"gpu": blocks.gpu(), "note": note, "heading": heading, "rows": rows}


def compare(data, environment):
    """{way: {"SIZE:BATCH": {"rate": images a second, "compiled": seconds until `WARM_UP` steps had been made}}}."""
    others = [KERAS, PYTORCH] if importlib.util.find_spec("torch") else [KERAS]
    found = {}
    # `AGAIN` comes last, so that it finds the programs that the first group has compiled.
    for group in ([*REGBENCH, *others], [AGAIN]):
        started = [Way(way, data, environment, ONLY.get(way, CASES)) for way in group]
        for way in started:
            way.line("ready")
        for way in started:
            found[way.name] = way.measure()
            print(f"{way.name}: {json.dumps(found[way.name])}", flush=True)
    return found


class Way:
    """The process of one way. It is killed if it takes too long."""

    def __init__(self, name, data, environment, cases):
        self.name = name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process runs)
        # PyTorch brings its own CUDA libraries.
        ours = ("LD_LIBRARY_PATH", "PYTHONPATH") if name == PYTORCH else ()
        variables = {key: value for key, value in environment.items() if key not in ours}
        variables["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # the processes share its memory; one at a time is timed
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, str(data), *cases],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=variables,
        )

    def line(self, wanted):
        """The next line that starts with `wanted`; "" if the process ends first or is killed because it is too slow."""
        patience = threading.Timer(PATIENCE, self.process.kill)
        patience.start()
        found = next((line for line in self.process.stdout if line.startswith(wanted)), "")
        patience.cancel()
        return found

    def measure(self):
        """{case: what `one_way` measured}; {} and a message if it failed."""
        found = ""
        if self.process.poll() is None:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            found = self.line("{")
        self.process.kill()
        if not found:
            self.errors.seek(0)
            print(f"{self.name} failed:\n{self.errors.read()[-2000:]}", file=sys.stderr)
        return json.loads(found or "{}")


if __name__ == "__main__":
    one_way(*sys.argv[1:])
