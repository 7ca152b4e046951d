#!/usr/bin/env bash
# Runs what changed on a branch, and gives its results back: outputs to the DVC remote, dvc.lock and metrics.json to the
# branch as a commit. On two machines, so that what the branch runs sees no token:
#   gpu.sh run                          in the branch's checkout: what must run, and its outputs to the DVC remote
#   gpu.sh push BRANCH COMMIT RESULTS   in the default branch's, with the token: the commit, and ci and review on it.
#                                       COMMIT is what ran, RESULTS the folder with its two files
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"

run() {
  if [[ -z $(dvc config core.remote 2>/dev/null) ]]; then
    # Before hours of training, not after.
    echo "gpu: no default DVC remote is set, so the results would stay here: docs/pull-requests.md" >&2
    exit 1
  fi
  # The base is in no remote. Where a changed stage only lacks it, DVC would try to pull it, and not make it.
  dvc repro download_model
  dvc repro --pull --allow-missing
  # Before the commit: should that be refused, the next run finds its stages in the remote's run cache.
  dvc push --run-cache
}

push() {
  local branch=$1 commit=$2 results=$3 name tree
  git check-ref-format "refs/heads/$branch" || refuse "'$branch' is no name of a branch"
  # The branch is only data here: no checkout, whose hooks and filters would run.
  GIT_INDEX_FILE=$(mktemp -d)/index
  export GIT_INDEX_FILE
  git read-tree "$commit"
  for name in dvc.lock metrics.json; do
    if [[ ! -f $results/$name || -L $results/$name ]]; then echo "gpu: $results/$name is no file" >&2; exit 1; fi
    git update-index --add --cacheinfo "100644,$(git hash-object -w --no-filters "$results/$name"),$name"
  done
  tree=$(git write-tree)
  if [[ $tree == $(git rev-parse "$commit^{tree}") ]]; then
    echo "gpu: nothing had to run"
    return
  fi
  commit=$(git -c user.name='github-actions[bot]' -c user.email='41898282+github-actions[bot]@users.noreply.github.com' \
    commit-tree "$tree" -p "$commit" -m "Results of $(git rev-parse --short "$commit")")
  if ! git -c core.hooksPath=/dev/null -c credential.helper= -c 'credential.helper=!gh auth git-credential' \
    push --quiet origin "$commit:refs/heads/$branch"; then
    echo "gpu: $branch cannot be pushed to. Where it moved on, start the workflow again: what ran is in the remote" >&2
    exit 1
  fi
  # A push by the workflow's own token starts no workflow; a dispatch by it does.
  gh workflow run ci.yml --ref "$branch"
  gh api --method GET "repos/$GITHUB_REPOSITORY/pulls" -f state=open -f "head=${GITHUB_REPOSITORY%%/*}:$branch" |
    python3 -c 'import json, sys; [print(pull["number"]) for pull in json.load(sys.stdin)]' |
    while read -r number; do gh workflow run review.yml -f "number=$number"; done
}

case "${1:-} $#" in
  "run 1") run ;;
  "push 4") push "$2" "$3" "$4" ;;
  *) refuse "run, or push BRANCH COMMIT RESULTS" ;;
esac
