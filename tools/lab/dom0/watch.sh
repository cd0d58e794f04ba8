# Watches one domain for as long as the caller's connection lasts.
#
#   stdin   one line: the caller is done; end of file: the caller died, so the
#           domain is destroyed rather than left behind
#   stdout  "row …", the domain's line of `xl list -v`, each time any domain
#           ended; "gone" when it no longer exists
#
# The caller sets $id before this text. A watch fires once when it is set, so
# a domain that ended before that is seen too.
xenstore-watch @releaseDomain 2>/dev/null </dev/null | while read -r _; do
    if row=$(xl list -v "$id" 2>/dev/null); then
        printf '%s\n' "$row" | sed -n '2s/^/row /p'
    else
        echo gone
        break
    fi
done &
read -r _ || xl destroy "$id" 2>/dev/null
