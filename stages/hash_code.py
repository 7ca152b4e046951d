"""Hash code: stages/ → .code/<stage>.json for each stage, {file: hash}.

Each stage depends on its file of hashes, not on the modules themselves. DVC runs this stage, which takes a second, when
a file of stages/ changed. A changed comment, docstring or message leaves the hashes as they are, and nothing else runs.
What a hash covers is in stages/core/code_hash.py.

All other stages follow this one, so it also checks that the paths in params.yaml exist. DVC itself would end there with
"No such file or directory" and no word about params.yaml.

    dvc repro hash_code
"""

from stages.runtime.stage_options import stage_options

from stages.core.code_hash import STAGES, stage_hashes
from stages.core.params import Params
from stages.core.paths import CODE, write_json
from stages.runtime.counts import plural
from stages.runtime.integrity import check_new_paths
from stages.runtime.runner import Outcome, run_stage


def hash_code() -> dict[str, dict[str, str]]:
    """{stage: {file: hash}}"""
    return {stage: stage_hashes(stage) for stage in STAGES}


def main(params: Params) -> Outcome:
    check_new_paths({"data.path": params.data.path, "model.path": params.model.path})
    hashes = hash_code()
    for stage, files in hashes.items():
        write_json(CODE / f"{stage}.json", files)
    return Outcome(f"{plural(len(set().union(*hashes.values())), 'file')} of {len(hashes)} stages")


if __name__ == "__main__":
    stage_options("hash_code", __doc__)
    run_stage("hash_code", main)
