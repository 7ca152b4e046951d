#!/usr/bin/env bash
# The review of a pull request, in three steps, so that the token is only where it must be:
#   review.sh fetch NUMBER   with the token: what the pull request is, and its commits as Git objects
#   review.sh make           without: the page, by this checkout's own code; the branch's is only read
#   review.sh post NUMBER    with the token: one comment, new or updated, and the status of the commit
set -euo pipefail
# shellcheck source=.github/scripts/usage.sh
source "$(dirname "$0")/usage.sh"

work=${RUNNER_TEMP:-}
comment_author=${REVIEW_AUTHOR:-github-actions[bot]}

field() { # of what GitHub said of the pull request
  python3 -c 'import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2].split("."): value = value[key]
print(value)' "$work/pull.json" "$1"
}

number() {
  [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || { echo "review: '${1:-}' is no number of a pull request" >&2; exit 2; }
  echo "$1"
}

fetch() {
  local number base
  number=$(number "$1")
  gh api "repos/$GITHUB_REPOSITORY/pulls/$number" >"$work/pull.json"
  base=$(field base.ref)
  git -c credential.helper= -c 'credential.helper=!gh auth git-credential' fetch --quiet --no-tags origin \
    "+refs/heads/$base:refs/remotes/origin/$base" "+refs/pull/$number/head:refs/review/head"
}

make() {
  python3 -m tools.review --base "origin/$(field base.ref)" --head refs/review/head \
    --output "$work/review.md" --status "$work/status.json"
  git rev-parse refs/review/head >"$work/head"
  if [[ -n ${GITHUB_STEP_SUMMARY:-} ]]; then cat "$work/review.md" >>"$GITHUB_STEP_SUMMARY"; fi
}

earlier_comment() { # the number of the comment that an earlier run left, if one did
  gh api --paginate "repos/$GITHUB_REPOSITORY/issues/$1/comments?per_page=100" | python3 -c 'import json, sys
text, author, decoder = sys.stdin.read().strip(), sys.argv[1], json.JSONDecoder()
while text:  # a list a page, one after the other
    page, end = decoder.raw_decode(text)
    text = text[end:].strip()
    for comment in page:
        login = (comment["user"] or {}).get("login")  # a deleted account is null
        if login == author and comment["body"].startswith("<!-- made by tools/review.py -->"):
            print(comment["id"])
            sys.exit()' "$comment_author"
}

status() {
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/status.json" "$1"
}

post() {
  local number comment
  number=$(number "$1")
  comment=$(earlier_comment "$number")
  if [[ -n $comment ]]; then
    gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$comment" -F "body=@$work/review.md"
  else
    gh api --silent --method POST "repos/$GITHUB_REPOSITORY/issues/$number/comments" -F "body=@$work/review.md"
  fi
  gh api --silent --method POST "repos/$GITHUB_REPOSITORY/statuses/$(cat "$work/head")" \
    -f "state=$(status state)" -f context=gate -f "description=$(status description)" \
    -f "target_url=${GITHUB_SERVER_URL:-https://github.com}/$GITHUB_REPOSITORY/pull/$number"
}

if [[ -z $work ]]; then refuse "RUNNER_TEMP must name the folder that the steps share"; fi
case "${1:-} $#" in
  "fetch 2") fetch "$2" ;;
  "make 1") make ;;
  "post 2") post "$2" ;;
  *) refuse "fetch NUMBER, make or post NUMBER" ;;
esac
