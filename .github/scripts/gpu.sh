#!/usr/bin/env bash
# Runs what changed on the branch that is checked out, and gives its results back: outputs to the DVC remote,
# dvc.lock and metrics.json to the branch as a commit. In two steps, so that what the branch runs sees no token:
#   gpu.sh run            what must run, and its outputs to the DVC remote
#   gpu.sh push BRANCH    with the token: the commit, and ci and review on it
set -euo pipefail

run() {
  if [[ -z $(dvc config core.remote 2>/dev/null) ]]; then
    # Before hours of training, not after.
    echo "gpu: no default DVC remote is set, so the results would stay here: docs/pull-requests.md" >&2
    exit 1
  fi
  dvc repro --pull --allow-missing
  # Before the commit: should that be refused, the next run finds its stages in the remote's run cache.
  dvc push --run-cache
}

push() {
  local branch=$1
  git check-ref-format "refs/heads/$branch" || { echo "gpu: '$branch' is no name of a branch" >&2; exit 2; }
  git add dvc.lock metrics.json
  if git diff --cached --quiet; then
    echo "gpu: nothing had to run"
    return
  fi
  git -c user.name='github-actions[bot]' -c user.email='41898282+github-actions[bot]@users.noreply.github.com' \
    commit --quiet --message "Results of $(git rev-parse --short HEAD)"
  if ! git -c credential.helper= -c 'credential.helper=!gh auth git-credential' \
    push --quiet origin "HEAD:refs/heads/$branch"; then
    echo "gpu: $branch cannot be pushed to. Where it moved on, start the workflow again: what ran is in the remote" >&2
    exit 1
  fi
  # A push by the workflow's own token starts no workflow; a dispatch by it does.
  gh workflow run ci.yml --ref "$branch"
  gh api --method GET "repos/$GITHUB_REPOSITORY/pulls" -f state=open -f "head=${GITHUB_REPOSITORY%%/*}:$branch" |
    python3 -c 'import json, sys; [print(pull["number"]) for pull in json.load(sys.stdin)]' |
    while read -r number; do gh workflow run review.yml -f "number=$number"; done
}

case ${1:-} in
  run) run ;;
  push) push "${2:?the branch that is checked out}" ;;
  *) echo "gpu: run, or push BRANCH" >&2; exit 2 ;;
esac
