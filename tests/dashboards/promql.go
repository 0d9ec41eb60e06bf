// Package dashboards checks the dashboards, alert rules and runbooks against each other, the metrics reference and Prometheus'
// own parser (promtool). `make dashboards-check`; it needs no cluster. That every expression finds data in the real operator is
// tested by tests/e2e/tests/dashboards.rs.
package dashboards

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// selector is one use of a metric in an expression.
type selector struct {
	metric   string
	matchers map[string]string // value with its operator, by label
	isRange  bool
	function string // the function that it is the argument of, if it is one directly
}

// use is what an expression asks for.
type use struct {
	selectors []selector
	labels    []string // of by, without, on, ignoring, group_left, group_right
}

var (
	token     = regexp.MustCompile(`^(?:[a-zA-Z_:][a-zA-Z0-9_:]*|[0-9][0-9.]*[a-z]*|"(?:[^"\\]|\\.)*"|\s+|#[^\n]*|.)`)
	matcher   = regexp.MustCompile(`^\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)`)
	name      = regexp.MustCompile(`^[a-zA-Z_:]`)
	grouping  = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
	operators = []string{"and", "or", "unless", "bool", "offset", "inf", "nan"}
	// Aggregations may stand apart from their argument: sum by (x) (y).
	aggregations = []string{"sum", "min", "max", "avg", "count", "group", "topk", "bottomk", "quantile", "stddev", "stdvar"}
)

// parse finds the metrics and labels of an expression. That it is valid is promtool's to say.
func parse(expr string) (use, error) {
	var tokens []string
	for rest := expr; rest != ""; {
		found := token.FindString(rest)
		rest = rest[len(found):]
		// Matchers and ranges are one token each; none of ours has a bracket within a string.
		if closing := map[string]string{"{": "}", "[": "]"}[found]; closing != "" {
			inner, after, ok := strings.Cut(rest, closing)
			if !ok {
				return use{}, fmt.Errorf("%q is never closed", found)
			}
			found, rest = found+inner, after
		}
		if strings.TrimSpace(found) != "" && found[0] != '#' {
			tokens = append(tokens, found)
		}
	}
	at := func(i int) string {
		if i < 0 || i >= len(tokens) {
			return ""
		}
		return tokens[i]
	}
	var u use
	for i := 0; i < len(tokens); i++ {
		word := tokens[i]
		switch {
		case slices.Contains(grouping, word) && at(i+1) == "(":
			for i += 2; at(i) != ")" && at(i) != ""; i++ {
				if at(i) != "," {
					u.labels = append(u.labels, at(i))
				}
			}
		case word[0] == '{':
			return use{}, fmt.Errorf("a selector without a name: %s", word)
		case !name.MatchString(word) || slices.Contains(operators, word) || slices.Contains(aggregations, word) || at(i+1) == "(":
		default:
			s := selector{metric: word, matchers: map[string]string{}}
			if at(i-1) == "(" && name.MatchString(at(i-2)) {
				s.function = at(i - 2)
			}
			if next := at(i + 1); strings.HasPrefix(next, "{") {
				i++
				for text := next[1:]; strings.TrimSpace(text) != ""; {
					m := matcher.FindStringSubmatch(text)
					if m == nil {
						return use{}, fmt.Errorf("matchers of %s: %s", word, text)
					}
					s.matchers[m[1]] = m[2] + m[3]
					text = text[len(m[0]):]
				}
			}
			s.isRange = strings.HasPrefix(at(i+1), "[")
			u.selectors = append(u.selectors, s)
		}
	}
	return u, nil
}
