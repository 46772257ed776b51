#!/usr/bin/env bash
# The report is tested in a real browser. Installs Debian's chromium where there is none and we may; elsewhere says what to do.
set -u
for name in chromium chromium-browser google-chrome; do command -v "$name" >/dev/null && exit 0; done
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null && exit 0
fi
echo "No Chromium found: the browser tests of the report will be skipped. Install it (Debian: apt-get install chromium)." >&2
exit 0
