"""The experiments of conf/experiment: batches and learning rates against their sources' tables."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import support
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from adabatch import config, cutting, plan
from adabatch.composed import Composed

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf" / "experiment"
PRESETS = {"compare", "smoke"}  # presets, no experiments
EXPERIMENTS = sorted({path.stem for path in CONF.glob("*.yaml")} - PRESETS)


def composed(*overrides) -> dict:
    with config.composer():
        return config.checked(config.load(overrides)).config


def table(*overrides, samples=50_000) -> list[tuple]:
    """(epoch of the first update, batch, learning rate) of each stretch of a run."""
    tree = composed(*overrides)
    schedule = plan.schedule(tree, samples)
    found, position = [], 0
    while not schedule.done(position):
        setting = schedule(schedule.start(position))
        if not found or found[-1][1:] != (setting.divisor, pytest.approx(setting.lr, rel=1e-9)):
            found.append((round(position / samples), setting.divisor, setting.lr))
        position = schedule.start(position) + setting.batch_size
    return found


def arms(*overrides) -> dict:
    with config.composer():
        loader = GlobalHydra.instance().config_loader()
        return {a.name: a for a in Composed(config.load(overrides), loader, list(overrides)).arms()[0]}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_lab_note(name):
    """Its source and what differs, or where these are told; and nothing but comments before the keys."""
    text = (CONF / f"{name}.yaml").read_text()
    note = text.partition("\ndefaults:\n")[0]
    assert text.startswith("# @package _global_\n# ") and all(line[0] == "#" for line in note.splitlines())
    others = set(re.findall(r"experiment=(\w+)", note)) & set(EXPERIMENTS) - {name}
    elsewhere = "lab note" in note and others
    assert re.search("What differs|# Here ", note) or elsewhere


def test_adabatch_cifar_has_the_papers_batches_and_learning_rates():
    found = arms("experiment=adabatch_cifar")
    assert list(found) == [
        "fixed 128", "fixed 512", "fixed 2048", "mean-matched 330", "adabatch", "published lr 2048",
    ]  # fmt: skip
    stages = {}
    for start, batch, lr in found["adabatch"].path:
        stages.setdefault((batch, float(f"{lr:.6g}")), []).append(start)
    # NVlabs/AdaBatch, 128 to 2,048 with gamma 0.75; its tails are dropped: 390, 195, 97, 48 and 24 an epoch.
    assert list(stages) == [
        (128, 0.01), (256, 0.0075), (512, 0.005625), (1024, 0.00421875), (2048, 0.00316406),
    ]  # fmt: skip
    # 7,813 x 128 = 1,000,064; 3,906 x 256 more are 2,000,000; then 3,000,448, 4,000,896 and the end.
    assert [len(s) for s in stages.values()] == [7813, 3906, 1954, 977, 488]
    fixed = {float(f"{lr:.9g}") for *_, lr in found["fixed 128"].path}
    assert fixed == {0.01, 0.00375, 0.00140625, 0.00052734375, 0.000197753906}
    published = {float(f"{lr:.9g}") for *_, lr in found["published lr 2048"].path}
    assert published == fixed  # sixteen times the batch at the small one's learning rate
    assert max(lr for *_, lr in found["fixed 2048"].path) == pytest.approx(0.16)


def test_alexnet_goes_from_256_to_4096():
    found = arms("experiment=adabatch_cifar_alexnet", "dataset=cifar100")
    assert {batch for _, batch, _ in found["adabatch"].path} == {256, 512, 1024, 2048, 4096}
    assert found["adabatch"].config["options"]["model"] == "alexnet"
    assert {batch for _, batch, _ in found["published lr 4096"].path} == {4096}


def test_the_four_gpu_settings_warm_up_once_an_epoch_from_the_baseline_batch():
    """NVlabs/AdaBatch with --train-batch 1024 --baseline-batch 128 --warmup 5 --gamma 0.5, doubling, lr
    0.1."""
    found = table("experiment=adabatch_cifar_4gpu", "schedule.base_batch=1024")
    expected = [
        (0, 1024, 0.1), (1, 1024, 0.275), (2, 1024, 0.45), (3, 1024, 0.625), (4, 1024, 0.8),
        (20, 2048, 0.4), (40, 4096, 0.2), (60, 8192, 0.1), (80, 16384, 0.05),
    ]  # fmt: skip
    assert found == [(e, b, pytest.approx(lr)) for e, b, lr in expected]
    fixed = table("experiment=adabatch_cifar_4gpu", "schedule=fixed")
    assert fixed == [(20 * k, 128, pytest.approx(0.1 * 0.25**k)) for k in range(5)]


def test_adabatch_multi_has_one_batch_for_all_processes_together():
    """The reproduction's was per process: three of them trained with three times the batch. Here their shares
    of any batch add up to it, in whole micro-batches of 64."""
    tree = composed("experiment=adabatch_multi")
    assert tree["hardware"]["processes"] == 3 and tree["hardware"]["reduction"] == "ordered"
    for _, batch, _ in table("experiment=adabatch_multi"):
        for world in (1, 3):
            shares = [cutting.parts(batch, 32, 64, rank, world, None, True) for rank in range(world)]
            sizes = [rows.stop - rows.start for share in shares for rows in share.passes]
            assert sum(sizes) == batch and set(sizes) == {64}


@pytest.mark.parametrize("factor, batches, lrs", [
    (8, (8192, 65536, 524288), (3.2, 2.56, 2.048)),
    (4, (8192, 32768, 131072), (3.2, 1.28, 0.512)),
    (2, (8192, 16384, 32768), (3.2, 0.64, 0.128)),
])  # fmt: skip
def test_adabatch_imagenet_grows_every_30_epochs(factor, batches, lrs):
    """lr / batch falls to a tenth whatever the factor; warm-up from 0.1, 0.1 * 8192 / 256 = 3.2 at the fifth
    epoch."""
    found = table("experiment=adabatch_imagenet", f"schedule.growth.factor={factor}", samples=1_281_167)
    warmed = [(e, 8192, pytest.approx(0.1 + e * 3.1 / 4)) for e in range(4)]
    starts = (4, 30, 60)
    assert found == warmed + [(e, b, pytest.approx(lr)) for e, b, lr in zip(starts, batches, lrs)]


def test_adabatch_imagenets_warm_up_to_a_batch_of_131072():
    """NVlabs/AdaBatch with -b 512 --zero-grad-freq 256 --baseline-batch 256 --lr 0.1 --warmup 5."""
    fixed = ("schedule.growth.factor=1", "schedule.base_batch=131072")
    found = table("experiment=adabatch_imagenet", *fixed, samples=1_281_167)[:5]
    assert [lr for *_, lr in found] == [pytest.approx(v) for v in (0.1, 12.875, 25.65, 38.425, 51.2)]


# -- the command files -----------------------------------------------------------------------------


def launched(script: str, *words: str, cwd: Path, **variables) -> str:
    """What the command file prints."""
    quick = ("hardware.threads=1", "trackers.wandb.mode=disabled")
    done = support.launched(script, *quick, *words, cwd=cwd, **variables)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "launch").glob("*.sh")))
def test_a_command_file_says_what_it_does_and_names_an_experiment(script):
    text = (ROOT / "launch" / script).read_text()
    assert text.startswith("#!/bin/sh\n# ") and "set -eu" in text and '"$@"' in text
    named = set(re.findall(r"experiment=(\w+)", text))
    assert named and named <= {path.stem for path in CONF.glob("*.yaml")}
    subprocess.run(["sh", "-n", ROOT / "launch" / script], check=True)


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "launch").glob("*.sh")))
def test_every_series_has_pieces_for_a_gpu(script):
    text = (ROOT / "launch" / "gpu" / script).read_text()
    assert f"launch/gpu/{script} " in text  # how it is called
    subprocess.run(["sh", "-n", ROOT / "launch" / "gpu" / script], check=True)


@pytest.fixture
def pieces(tmp_path):
    """The command files beside a stand-in for the program that says how it was called, and ends with the code
    in the file "code". -> run(script, words): what it says, and its code."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch", ignore=shutil.ignore_patterns("hydra_plugins"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stands_in = tmp_path / ".venv/bin/adabatch"
    stands_in.write_text(f'#!/bin/sh\necho "$*"\nexit "$(cat {tmp_path}/code)"\n')
    stands_in.chmod(0o755)
    (tmp_path / ".venv/bin/adabatch-report").symlink_to("/bin/true")
    (tmp_path / "code").write_text("0")

    def run(script, *words, **variables):
        return subprocess.run(["sh", tmp_path / "launch" / script, *words], cwd=tmp_path, text=True,
                              capture_output=True, timeout=60, env=os.environ | variables)  # fmt: skip

    return run


@pytest.mark.parametrize("script", sorted(p.name for p in (ROOT / "launch").glob("*.sh")))
def test_a_piece_for_a_gpu_is_the_series_with_what_was_given(pieces, script):
    alone = pieces(script, "hardware.precision=bf16", "a key=1 2")
    piece = pieces(f"gpu/{script}", "1", "a key=1 2")
    assert piece.returncode == alone.returncode == 0 and alone.stdout.count("a key=1 2") > 0
    assert piece.stdout.replace(" hardware=gpu", "") == alone.stdout
    for words in ((), ("a key=1 2",), ("0", "a"), ("-1", "b")):
        refused = pieces(f"gpu/{script}", *words)
        assert refused.returncode == 2 and "minutes" in refused.stderr and not refused.stdout


def test_where_a_run_fails_the_series_goes_on_and_where_nothing_can_run_it_ends(pieces, tmp_path):
    for code, count in ((0, 6), (1, 6), (2, 1), (130, 1)):
        (tmp_path / "code").write_text(str(code))
        done = pieces("adabatch_cifar.sh", "seed=3")
        assert done.returncode == code
        lines = done.stdout.splitlines()
        assert len(lines) == count and all(line.endswith("seed=3") for line in lines)
    assert lines == ["-m experiment=adabatch_cifar_alexnet model=alexnet dataset=cifar10 seed=3"]
    done = pieces("adabatch_cifar.sh", NETWORKS="vgg", DATASETS="cifar100")
    assert done.stdout == "-m experiment=adabatch_cifar model=vgg dataset=cifar100\n"


def test_a_piece_ends_in_time_by_the_signal_that_saves_and_hands_on_other_ends(tmp_path):
    piece = [sys.executable, ROOT / "launch" / "gpu" / "piece.py"]
    saves = "trap 'echo saved; exit 130' INT; while :; do sleep 0.1; done"
    done = subprocess.run([*piece, "0.05", "sh", "-c", saves], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == "saved\n0.05 minutes are over: the same command goes on from here\n"
    for code in (0, 1, 2):
        assert subprocess.run([*piece, "1", "sh", "-c", f"exit {code}"], timeout=60).returncode == code
    started = subprocess.Popen(
        [*piece, "1", "sh", "-c", saves.replace("while", "echo begun; while", 1)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "begun\n"
    started.send_signal(signal.SIGINT)  # Ctrl-C reaches what runs, at once
    assert started.communicate(timeout=30)[0] == "saved\n" and started.returncode == 130


@pytest.mark.real_data
@pytest.mark.slow
def test_adabatch_cifar_small_from_its_command_file(tmp_path):
    """Both data sets: the script hands on what it was given, once for each comparison."""
    words = ("compare.arms=[fixed,adaptive]", "compare.ladder=16", "compare.seeds=1", "epochs=5",
             "dataset.limit=300", "schedule.base_batch=8", "evaluate.every=5", "timing=phases")  # fmt: skip
    text = launched("adabatch_cifar.sh", *words, cwd=tmp_path, NETWORKS="alexnet")
    assert len(list(tmp_path.glob("outputs/compare-*/compare.yaml"))) == 2
    assert text.count("adabatch  ") >= 2 and "interim" in text
    summaries = list(tmp_path.glob("outputs/compare-*/*/summary.json"))
    assert len(summaries) == 6
    for path in summaries:
        ledger = support.runs.read_json(path)["ledger"]
        assert ledger["forward"] > 0 and ledger["backward"] > 0


@pytest.mark.real_data
@pytest.mark.slow
def test_adabatch_multi_small_is_the_same_run_on_one_process_and_on_two(tmp_path):
    words = ("model.depth=8", "dataset.limit=256", "epochs=2", "schedule.base_batch=32", "evaluate.every=2",
             "model.ghost=16", "hardware.micro_batch=16")  # fmt: skip
    launched("adabatch_multi.sh", *words, cwd=tmp_path, PROCESSES="1,2")
    found = {}
    for path in tmp_path.glob("outputs/*/summary.json"):
        summary = support.runs.read_json(path)
        found.setdefault(summary["schedule"], []).append(summary["weights_sha256"])
    assert sorted(found) == ["adabatch", "fixed"]
    assert all(len(hashes) == 2 and len(set(hashes)) == 1 for hashes in found.values())
    assert found["adabatch"] != found["fixed"]


@pytest.mark.slow
def test_adabatch_imagenet_small_accumulates_batches_that_no_pass_holds(tmp_path):
    """24 pictures in three folders; 8, 16 and 24 of them a step (the set is the cap) in passes of 4."""
    for part, count in (("train", 8), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            folder = tmp_path / "data" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(256, (48, 40, 3), generator=torch.Generator().manual_seed(i)).byte()
                Image.fromarray(noise.numpy()).save(folder / f"{i}.png")
    words = (f"dataset.root={tmp_path / 'data'}", "dataset.samples=24", "dataset.classes=3",
             "dataset.crop=32", "dataset.resize=36", "epochs=3", "schedule.base_batch=8",
             "schedule.growth.every=1", "schedule.decay.every=1", "schedule.warmup_epochs=0",
             "hardware.micro_batch=4", "model.ghost=4")  # fmt: skip
    launched("adabatch_imagenet.sh", *words, cwd=tmp_path, NETWORKS="resnet18")
    found = {}
    for path in tmp_path.glob("outputs/*/metrics.jsonl"):
        rows = [row for row in support.runs.read_rows(path.parent) if row["event"] == "train"]
        factor = support.runs.Run(path.parent).config["schedule"]["growth"]["factor"]
        found[factor] = [(row["batch_size"], row["micro_batch"], row["accumulation"]) for row in rows]
    assert sorted(found) == [1, 2, 4, 8]
    assert found[1] == [(8, 4, 2)] * 9
    assert found[2] == [(8, 4, 2)] * 3 + [(16, 4, 4)] * 3  # the last one of 24 is cut to what is left
    assert found[4] == found[8] == [(8, 4, 2)] * 3 + [(24, 4, 6)] * 2


# -- batch_size_and_speed ----------------------------------------------------------------------------


def test_batch_size_and_speed_has_the_notes_learning_rates_and_an_arm_that_grows():
    """Of the note: lr .0003 at a batch of 32, .0006, .0012 and .0024 at 256. A cosine over all 50 epochs is
    half way down after 25. lr / batch is 9.375e-6 times the cosine in every arm. (A tenth of the data.)"""
    found = arms("experiment=batch_size_and_speed", "dataset.limit=5000")
    rates = {8: 0.000075, 16: 0.00015, 32: 0.0003, 64: 0.0006, 128: 0.0012, 256: 0.0024}
    assert list(found) == [*(f"fixed {b}" for b in rates), "mean-matched 68", "adabatch"]
    for batch, lr in rates.items():
        arm = found[f"fixed {batch}"]
        assert arm.path[0] == (0, batch, pytest.approx(lr)) and arm.batches == (batch, batch)
        assert arm.schedule(125_000).lr == pytest.approx(lr / 2)
        assert arm.schedule.budget == 250_000
    grown, matched = found["adabatch"], found["mean-matched 68"]
    stages = {batch: start for start, batch, _ in reversed(grown.path)}
    assert list(stages)[::-1] == [32, 64, 128, 256]
    for quarter, start in enumerate(sorted(stages.values())):
        assert quarter * 62_500 <= start < quarter * 62_500 + 256
    for start, batch, lr in grown.path[:: len(grown.path) // 50]:
        cosine = (1 + math.cos(math.pi * start / 250_000)) / 2
        assert lr == pytest.approx(9.375e-6 * batch * cosine, abs=1e-12)
        assert matched.schedule(start).lr == pytest.approx(9.375e-6 * 68 * cosine, abs=1e-12)
    assert len(matched.path) == pytest.approx(len(grown.path), rel=0.005)
    assert [arm.name for arm in found.values() if arm.adaptive] == ["adabatch"]


def test_batch_size_and_speed_trains_as_the_note_does():
    for network in ("mobilenet_v2", "proxylessnas_mobile"):
        found = composed("experiment=batch_size_and_speed", f"model={network}", "dataset=cifar100")
        assert found["optimizer"]["_target_"] == "torch.optim.Adam" and found["epochs"] == 50
        assert found["optimizer"]["weight_decay"] == 1e-4 and found["optimizer"]["decay_norm_and_bias"]
        assert (found["model"]["stem"], found["model"]["norm"]) == ("imagenet", "ghost")
        data = found["dataset"]
        assert (data["size"], data["size"] / data["crop_pct"]) == (224, 256)  # Resize 256, CenterCrop 224
        assert data["augment"]["scale"] == [0.08, 1]
        assert data["augment"]["flip"] is True and data["augment"]["pad"] == 0


def test_missing_weights_are_told_before_torch_is_imported(tmp_path):
    code = (
        "import sys\nfrom adabatch.__main__ import main\nsys.argv = ['adabatch', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    line = ["-m", "experiment=batch_size_and_speed", "model.init_from=nothing.pth", "model.init_head=false"]
    found = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launch'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *line], cwd=tmp_path, capture_output=True, text=True, env=found
    )
    assert done.stdout == "2 False\n", done.stdout + done.stderr
    assert "model.init_from=nothing.pth: there is no such file or run" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.real_data
@pytest.mark.slow
def test_batch_size_and_speed_small_fine_tunes_the_last_layer(tmp_path):
    """From a file as torchvision writes it, of another number of classes; the growing batch and a fixed
    one."""
    from torchvision.models import mobilenet_v2

    torch.save(mobilenet_v2(num_classes=7).state_dict(), tmp_path / "mobilenet_v2-made.pth")
    words = (f"model.init_from={tmp_path}/mobilenet_v2-made.pth", "model.init_head=false", "model.train=last",
             "dataset=synthetic", "dataset.samples=64", "dataset.test_samples=16", "dataset.size=32",
             "epochs=1", "compare.seeds=1", "hardware=cpu", "hardware.own_process=false",
             "compare.arms=[{name: fixed, overrides: ['schedule=cosine'], sizes: [16]}, {name: adabatch, "
             "overrides: ['schedule=adabatch', 'schedule.growth.every=50%']}]")  # fmt: skip
    launched("batch_size_and_speed.sh", *words, cwd=tmp_path, NETWORKS="mobilenet_v2")
    steps = {}
    for path in tmp_path.glob("outputs/compare-*/*/summary.json"):
        rows = [row for row in support.runs.read_rows(path.parent) if row["event"] == "train"]
        steps[support.runs.read_json(path)["schedule"]] = [row["batch_size"] for row in rows]
    assert steps == {"cosine": [16] * 4, "adabatch": [32, 32]}
