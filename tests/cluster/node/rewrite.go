package node

import (
	"sort"
	"strings"
)

// rewrite maps the paths that a container would see to the real ones: there is no mount namespace to do it.
type rewrite struct{ from, to string }

// apply replaces each path of the rules in a text, the longest first and none twice. A path counts where it starts a path (not within
// https://host/data) and ends an element (not within /database); "file://" may stand before it.
func apply(rules []rewrite, text string) string {
	rules = append([]rewrite(nil), rules...)
	sort.SliceStable(rules, func(i, j int) bool { return len(rules[i].from) > len(rules[j].from) })
	var out strings.Builder
	for at := 0; at < len(text); {
		rule, found := ruleAt(rules, text, at)
		if !found {
			out.WriteByte(text[at])
			at++
			continue
		}
		out.WriteString(rule.to)
		at += len(rule.from)
	}
	return out.String()
}

func ruleAt(rules []rewrite, text string, at int) (rewrite, bool) {
	if text[at] != '/' || at > 0 && isPathByte(text[at-1]) && !strings.HasSuffix(text[:at], "file://") {
		return rewrite{}, false
	}
	for _, rule := range rules {
		end := at + len(rule.from)
		if strings.HasPrefix(text[at:], rule.from) && (end == len(text) || text[end] == '/' || !isPathByte(text[end])) {
			return rule, true
		}
	}
	return rewrite{}, false
}

func isPathByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("._-/", b) >= 0
}
