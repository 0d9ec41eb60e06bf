package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// page is a Markdown file, by its path from the top of the repository.
type page struct {
	path string
	text string
}

// block is a fenced code block: its info string, its lines, and the number of its first line.
type block struct {
	page string
	line int
	info []string
	text string
}

// link is what stands between the parentheses of a link, and its line.
type link struct {
	line   int
	target string
}

// pages reads every page that people read: those at the top, docs/ and the READMEs below tests/.
func pages(top string) ([]page, error) {
	var found []page
	add := func(path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, path)
		found = append(found, page{filepath.ToSlash(name), string(text)})
		return err
	}
	tops, err := filepath.Glob(filepath.Join(top, "*.md"))
	if err != nil {
		return nil, err
	}
	readmes, err := filepath.Glob(filepath.Join(top, "tests", "*", "README.md"))
	if err != nil {
		return nil, err
	}
	for _, path := range append(tops, readmes...) {
		if err := add(path); err != nil {
			return nil, err
		}
	}
	err = filepath.WalkDir(filepath.Join(top, "docs"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		return add(path)
	})
	slices.SortFunc(found, func(a, b page) int { return strings.Compare(a.path, b.path) })
	return found, err
}

var fence = regexp.MustCompile("^ *(```+|~~~+)(.*)$")

// each calls back with every line, its number from 1, and whether it stands in a fenced block (its fences included).
func (p page) each(visit func(number int, line string, fenced bool)) {
	var mark string
	for i, line := range strings.Split(p.text, "\n") {
		parts := fence.FindStringSubmatch(line)
		switch {
		case mark == "" && parts != nil:
			mark = parts[1]
			visit(i+1, line, true)
		case mark != "":
			visit(i+1, line, true)
			if parts != nil && strings.HasPrefix(parts[1], mark) && strings.TrimSpace(parts[2]) == "" {
				mark = ""
			}
		default:
			visit(i+1, line, false)
		}
	}
}

// blocks gives the fenced blocks of a page.
func (p page) blocks() []block {
	var found []block
	var open *block
	var mark string
	for i, line := range strings.Split(p.text, "\n") {
		parts := fence.FindStringSubmatch(line)
		switch {
		case open == nil && parts != nil:
			mark = parts[1]
			open = &block{page: p.path, line: i + 2, info: strings.Fields(parts[2])}
		case open != nil && parts != nil && strings.HasPrefix(parts[1], mark) && strings.TrimSpace(parts[2]) == "":
			found = append(found, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	return found
}

// is says whether a block is in this language, and not of one of the kinds that the second word of its info string names.
func (b block) is(language string) bool { return len(b.info) > 0 && b.info[0] == language }

// kind is the second word of the info string.
func (b block) kind() string {
	if len(b.info) < 2 {
		return ""
	}
	return b.info[1]
}

var (
	heading    = regexp.MustCompile(`^#{1,6}\s+(.*?)\s*#*$`)
	linkTarget = regexp.MustCompile(`\]\(([^()\s]+(?:\([^()\s]*\))?)(?:\s+"[^"]*")?\)`)
	markup     = regexp.MustCompile("[`*]|\\[([^\\]]*)\\]\\([^)]*\\)")
	codeSpan   = regexp.MustCompile("`[^`]*`")
)

// anchors gives the names that links may point to, as GitHub makes them from headings: lower case, blanks as hyphens, no
// punctuation; a heading that comes again gets a number.
func (p page) anchors() map[string]bool {
	found, seen := map[string]bool{}, map[string]int{}
	p.each(func(_ int, line string, fenced bool) {
		parts := heading.FindStringSubmatch(line)
		if fenced || parts == nil {
			return
		}
		anchor := anchorOf(parts[1])
		if n := seen[anchor]; n > 0 {
			found[anchor+"-"+string(rune('0'+n))] = true
		} else {
			found[anchor] = true
		}
		seen[anchor]++
	})
	return found
}

func anchorOf(title string) string {
	var anchor strings.Builder
	for _, char := range strings.ToLower(markup.ReplaceAllString(title, "$1")) {
		switch {
		case char == ' ' || char == '-':
			anchor.WriteRune('-')
		case char == '_' || unicode.IsLetter(char) || unicode.IsDigit(char):
			anchor.WriteRune(char)
		}
	}
	return anchor.String()
}

// links gives the links of a page, code left out.
func (p page) links() []link {
	var found []link
	p.each(func(number int, line string, fenced bool) {
		if fenced {
			return
		}
		line = codeSpan.ReplaceAllStringFunc(line, func(code string) string { return "`" + strings.Repeat("x", len(code)-2) + "`" })
		for _, match := range linkTarget.FindAllStringSubmatch(line, -1) {
			found = append(found, link{number, match[1]})
		}
	})
	return found
}
