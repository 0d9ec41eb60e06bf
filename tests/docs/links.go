package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// brokenLinks names every relative link that leads nowhere: to a file that is not there, or to a heading that its page lacks.
func brokenLinks(top string, all []page) []string {
	byPath := map[string]page{}
	for _, p := range all {
		byPath[p.path] = p
	}
	var problems []string
	for _, p := range all {
		for _, link := range p.links() {
			if problem := broken(top, p, link.target, byPath); problem != "" {
				problems = append(problems, fmt.Sprintf("%s:%d: %s: %s", p.path, link.line, link.target, problem))
			}
		}
	}
	return problems
}

func broken(top string, from page, target string, all map[string]page) string {
	if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
		return ""
	}
	file, anchor, _ := strings.Cut(target, "#")
	to := from.path
	if file != "" {
		to = path.Join(path.Dir(from.path), file)
		if strings.HasPrefix(to, "../") || strings.HasPrefix(file, "/") {
			return "it leads out of the repository"
		}
		if _, err := os.Stat(filepath.Join(top, filepath.FromSlash(to))); err != nil && all[to].path == "" {
			return "there is no such file"
		}
	}
	if anchor == "" {
		return ""
	}
	page, known := all[to]
	if !known {
		return "only pages have headings to point to"
	}
	if !page.anchors()[anchor] {
		return "no heading of that name"
	}
	return ""
}

// unreachable names pages of docs/ that no link leads to from docs/index.md or README.md.
func unreachable(all []page) []string {
	byPath, reached := map[string]page{}, map[string]bool{}
	for _, p := range all {
		byPath[p.path] = p
	}
	next := []string{"docs/index.md", "README.md"}
	for len(next) > 0 {
		at := next[0]
		next = next[1:]
		p, known := byPath[at]
		if !known || reached[at] {
			continue
		}
		reached[at] = true
		for _, link := range p.links() {
			file, _, _ := strings.Cut(link.target, "#")
			if file != "" && !strings.Contains(file, "://") {
				next = append(next, path.Join(path.Dir(at), file))
			}
		}
	}
	var problems []string
	for _, p := range all {
		if strings.HasPrefix(p.path, "docs/") && !reached[p.path] {
			problems = append(problems, p.path+": no link leads here from docs/index.md or README.md")
		}
	}
	return problems
}
