package dashboards

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

const repository = "../../"

// metric is a row of docs/reference/metrics.md, which is written from the operator's code.
type metric struct {
	kind   string
	labels []string
}

var row = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\| (.*?) \\|")

func reference() (map[string]metric, error) {
	text, err := os.ReadFile(repository + "docs/reference/metrics.md")
	if err != nil {
		return nil, err
	}
	metrics := map[string]metric{}
	for _, found := range row.FindAllStringSubmatch(string(text), -1) {
		var labels []string
		for label := range strings.SplitSeq(found[3], ",") {
			if label = strings.Trim(label, " `"); label != "" {
				labels = append(labels, label)
			}
		}
		metrics[found[1]] = metric{found[2], labels}
	}
	if len(metrics) == 0 {
		return nil, fmt.Errorf("docs/reference/metrics.md lists no metric")
	}
	return metrics, nil
}

// find gives the row that a name in an expression belongs to: a histogram has three names.
func find(metrics map[string]metric, name string) (string, metric, bool) {
	for _, ending := range []string{"", "_bucket", "_sum", "_count"} {
		base, ok := strings.CutSuffix(name, ending)
		if m, known := metrics[base]; ok && known && (ending == "") == (m.kind != "histogram") {
			return base, m, true
		}
	}
	return "", metric{}, false
}
