package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Where the scenarios are listed that pages may name, and how a row of that list begins.
const scenariosFile = "tests/e2e/src/docs.rs"

var (
	scenarioRow = regexp.MustCompile(`(?m)^\s*\("([a-z]+)", "`)
	blockMark   = regexp.MustCompile(`^\s*<!-- (run|illustrative): (.+?) -->\s*$`)
)

// scenarios gives the names of those that a test runs.
func scenarios(top string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(top, scenariosFile))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, row := range scenarioRow.FindAllStringSubmatch(string(text), -1) {
		names = append(names, row[1])
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s lists no scenario", scenariosFile)
	}
	return names, nil
}

// isShell says whether a block is something to be typed.
func (b block) isShell() bool {
	return b.is("sh") || b.is("console") || len(b.info) == 0 && typed.MatchString(b.text)
}

var typed = regexp.MustCompile(`(?m)^(\$ )?(kubectl|helm|make) `)

// unmarked names the blocks to be typed of docs/ and README.md which neither a test runs nor the page calls an illustration. The mark stands
// on the line before the block: `<!-- run: SCENARIO -->` or `<!-- illustrative: REASON -->`; on the first line of a page
// it is that of all blocks without one of their own. A block that nobody types may be marked as an illustration too.
func unmarked(all []page, scenarios []string) []string {
	var problems []string
	for _, p := range all {
		if p.path != "README.md" && !strings.HasPrefix(p.path, "docs/") {
			continue
		}
		lines := strings.Split(p.text, "\n")
		marks := map[int][]string{} // by the number of the line after it
		for i, line := range lines {
			if found := blockMark.FindStringSubmatch(line); found != nil {
				marks[i+2] = found
			}
		}
		of, wholePage := marks[2]
		for _, b := range p.blocks() {
			own, has := marks[b.line-1]
			delete(marks, b.line-1)
			if !has {
				own = of
			}
			switch {
			case has && own[1] == "run" && !b.isShell():
				problems = append(problems, fmt.Sprintf("%s:%d: a mark before a block that nobody types", p.path, b.line-2))
			case !b.isShell():
			case !has && !wholePage:
				problems = append(problems, fmt.Sprintf("%s:%d: no test runs this block and it is not marked as illustrative; "+
					"write `<!-- run: SCENARIO -->` or `<!-- illustrative: REASON -->` on the line before it", p.path, b.line-1))
			default:
				problems = append(problems, wrongMark(p, b, own, scenarios)...)
			}
		}
		if wholePage {
			delete(marks, 2)
		}
		for line := range marks {
			problems = append(problems, fmt.Sprintf("%s:%d: a mark with no block behind it", p.path, line-1))
		}
	}
	return problems
}

func wrongMark(p page, b block, mark, scenarios []string) []string {
	switch {
	case mark[1] == "run" && !slices.Contains(scenarios, mark[2]):
		return []string{fmt.Sprintf("%s:%d: %s lists no scenario %s", p.path, b.line-2, scenariosFile, mark[2])}
	case mark[1] == "illustrative" && len(strings.Fields(mark[2])) < 2:
		return []string{fmt.Sprintf("%s:%d: %q is no reason", p.path, b.line-2, mark[2])}
	}
	return nil
}
