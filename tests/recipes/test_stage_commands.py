"""Which commands the stages give for which inputs, without running them."""

import json
import shlex
from pathlib import Path

import pytest

from spear.config import parse_config
from spear.data.tokens.extract import ExtractConfig

ROOT = Path(__file__).resolve().parent.parent.parent
PRELUDE = f"""
set -euo pipefail
. "{ROOT}/local/common.sh"
. "{ROOT}/local/stages.sh"
SPEAR_ROOT="{ROOT}" SPEAR_PYTHON=python3
conf_dirs=("{ROOT}/recipes/mini/conf")
speech_dir="" text="" utt2spk="" test_ids="" valid_ids="" join="" audio_dir=""
output_dir=out num_jobs=1 recheck=3 device=cpu
train_cmd=(show)
show() {{ printf 'COMMAND %s\\n' "$(quote "$@")"; }}
"""


class Commands:
    """The commands of a run, by name."""

    def __init__(self, text: str) -> None:
        lines = [line.removeprefix("COMMAND ") for line in text.splitlines() if "COMMAND" in line]
        self.all = [shlex.split(line) for line in lines]

    def of(self, name: str) -> list[dict[str, str]]:
        """Options of every command of that name; of an option given twice, the last."""
        found = [words for words in self.all if words[words.index("spear") + 1] == name]
        return [self._options(words[words.index(name) + 1 :]) for words in found]

    @staticmethod
    def _options(words: list[str]) -> dict[str, str]:
        assert all(word.startswith("--") for word in words[::2])
        return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def commands(shell, tmp_path):
    def collect(settings: str, stages: str = "1 11") -> Commands:
        first, last = stages.split()
        script = (
            f"{PRELUDE}{settings}\nstage={first} stop_stage={last}\ncheck_options\nrun_stages\n"
        )
        done = shell(script)
        assert done.returncode == 0, done.stderr
        return Commands(done.stdout)

    return collect


def folders(option: str) -> list[str]:
    return [Path(path).name for path in json.loads(option)]


BOTH = "speech_dir=s text=t test_ids=x valid_ids=v audio_dir=a"


def test_speech_tokens_stand_everywhere_and_audio_tokens_with_audio(commands):
    (options,) = commands(f"{BOTH}\nwavlm=org/wavlm wavlm_layer=21").of("extract-tokens")
    everywhere = ["speech_train", "speech_valid", "speech_test", "audio_train", "audio_valid"]
    assert folders(options["--shards"]) == everywhere
    teachers = json.loads(options["--teachers"])
    assert list(teachers) == ["wavlm", "dasheng"]
    assert [Path(path).name for path in teachers["wavlm"]["shards"]] == everywhere
    assert [Path(path).name for path in teachers["dasheng"]["shards"]] == everywhere[3:]
    assert teachers["wavlm"]["teacher"] == {"name": "wavlm", "path": "org/wavlm", "layer": 21}
    for name, entry in teachers.items():
        assert entry["quantizer"].endswith(f"quantizers/{name}/quantizer.safetensors")
    parse_config(ExtractConfig, [word for pair in options.items() for word in pair
                                 if "THIS_JOB" not in pair])  # fmt: skip


def test_jobs_share_the_cores_of_this_machine_alone(commands):
    show = 'show() { printf \'COMMAND OMP=%s %s\\n\' "${OMP_NUM_THREADS:-}" "$(quote "$@")"; }'
    settings = f"{BOTH} num_jobs=2\nunset OMP_NUM_THREADS\n{show}\n"
    (words,) = commands(settings, "5 5").all
    assert words[0] == "OMP="  # a queue gives what it was asked for
    here = f'{settings}launch.sh() {{ show "$@"; }}\ntrain_cmd=(launch.sh)'
    (words,) = commands(here, "5 5").all
    assert int(words[0].removeprefix("OMP=")) >= 1
    assert words[1] == "THIS_JOB=1:2"


def test_what_is_verified_is_what_was_extracted(commands):
    speech, audio = commands(BOTH).of("verify")
    assert folders(speech["--shards"]) == ["speech_train", "speech_valid", "speech_test"]
    assert json.loads(speech["--teachers"]) == ["wavlm"]
    assert folders(audio["--shards"]) == ["audio_train", "audio_valid"]
    assert json.loads(audio["--teachers"]) == ["wavlm", "dasheng"]
    assert list(json.loads(audio["--quantizers"])) == ["wavlm", "dasheng"]
    assert speech["--recheck"] == audio["--recheck"] == "3"


def test_the_student_is_asked_for_the_tokens_that_the_quantisers_give(commands):
    found = commands(f"{BOTH}\nwavlm_codebooks=5 dasheng_codebooks=3")
    targets = json.loads(found.of("pretrain")[0]["--teachers"])
    for options in found.of("train-quantizer"):
        name = Path(options["--frames"]).name
        assert targets[name]["num_codebooks"] == int(options["--num_codebooks"])
        assert targets[name]["quantizer"] == options["--output"]
    assert {name: (t["role"], t["frame_rate_hz"]) for name, t in targets.items()} == {
        "wavlm": ("speech", 50.0),
        "dasheng": ("audio", 25.0),
    }


def test_without_audio_there_is_one_teacher(commands):
    found = commands("speech_dir=s text=t test_ids=x valid_ids=v")
    assert [o["--corpus"] for o in found.of("prepare")] == ["speech"]
    assert [o["--teacher.name"] for o in found.of("embed")] == ["wavlm"]
    assert list(json.loads(found.of("pretrain")[0]["--teachers"])) == ["wavlm"]
    assert len(found.of("decode")) == 2


def test_without_speech_the_audio_teacher_stands_alone(commands):
    found = commands("audio_dir=a")
    assert [o["--corpus"] for o in found.of("prepare")] == ["audio"]
    assert folders(found.of("embed")[0]["--shards"]) == ["audio_train"]
    assert list(json.loads(found.of("pretrain")[0]["--teachers"])) == ["dasheng"]
    assert found.of("finetune-asr") == found.of("decode") == []


def test_without_a_test_set_the_validation_set_is_made_and_scored(commands):
    found = commands("speech_dir=s text=t")
    (prepare,) = found.of("prepare")
    assert "--valid_fraction" not in prepare  # that of the configuration stays
    assert "--test_ids" not in prepare
    assert [Path(o["--cuts"]).name for o in found.of("shard")] == [
        "speech_train_cuts.jsonl.gz",
        "speech_valid_cuts.jsonl.gz",
    ]
    for decode in found.of("decode"):
        assert folders(decode["--shards"]) == ["speech_valid"]


def test_both_recognisers_differ_in_their_start_alone(commands):
    tuned, scratch = commands(f"{BOTH}\nasr_max_steps=7").of("finetune-asr")
    assert tuned.pop("--init") == scratch.pop("--init_config")
    assert tuned.pop("--train.output_dir") != scratch.pop("--train.output_dir")
    assert tuned == scratch
    assert tuned["--train.max_steps"] == "7"


def test_strange_paths_arrive_unchanged(commands, tmp_path):
    folder = tmp_path / "we\"ird \\ $x's folder"
    found = commands(f"{BOTH}\noutput_dir={shlex.quote(str(folder))}")
    sources = json.loads(found.of("pretrain")[0]["--data"])
    assert [one["path"] for one in sources] == [
        f"{folder}/data/speech_train",
        f"{folder}/data/audio_train",
    ]
    assert json.loads(found.of("verify")[0]["--quantizers"])["wavlm"].startswith(str(folder))


def test_named_teachers_are_used_and_no_small_ones_made(commands):
    found = commands(f"{BOTH}\nwavlm=org/wavlm wavlm_layer=21 dasheng=d.pt", "0 5")
    speech, audio = found.of("embed")
    assert (speech["--teacher.path"], speech["--teacher.layer"]) == ("org/wavlm", "21")
    assert audio["--teacher.path"] == "d.pt"
    assert "--teacher.layer" not in audio


def test_several_processes_run_under_torchrun(commands):
    found = commands(f"{BOTH}\nnproc=2", "7 10")
    for words in found.all:
        training = "torch.distributed.run" in words
        assert training == (words[words.index("spear") + 1] in ("pretrain", "finetune-asr"))
        if training:
            assert words[words.index("--nproc-per-node") + 1] == "2"


def test_own_configurations_come_last(commands, tmp_path):
    (tmp_path / "my conf").mkdir()
    (tmp_path / "my conf" / "pretrain.yaml").touch()
    found = commands(f'{BOTH}\nconf_dir="{tmp_path}/my conf"', "7 9")
    assert found.of("pretrain")[0]["--config"] == f"{tmp_path}/my conf/pretrain.yaml"
    assert found.of("finetune-asr")[0]["--config"].endswith("recipes/mini/conf/finetune-asr.yaml")


def test_a_failing_teacher_stops_the_job(shell):
    script = (
        f"{PRELUDE}{BOTH}\nnum_jobs=2 stage=3 stop_stage=4\n"
        'show() { case "$*" in *"embed"*dasheng*) exit 7 ;; *) echo "COMMAND $*" ;; esac; }\n'
        "run_stages\n"
    )
    done = shell(script)
    assert done.returncode == 7
    assert "train-quantizer" not in done.stdout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "give --speech-dir, --audio-dir or both"),
        ("audio_dir=a nproc=0", "--nproc is 1 or more, not '0'"),
        ("audio_dir=a num_jobs=two", "--num-jobs is 1 or more, not 'two'"),
        ("audio_dir=a stage=-1", "--stage is a stage's number, not '-1'"),
        ("audio_dir=a conf_dir=/no/such", "--conf-dir /no/such: no such folder"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(shell, settings, message):
    done = shell(f"{PRELUDE}{settings}\ncheck_options\n")
    assert done.returncode == 2
    assert done.stderr.endswith(f"error: {message}\n")
