package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
)

var (
	verbs = strings.Fields("annotate api-resources apply auth cluster-info config cordon create delete describe diff drain edit events exec explain " +
		"get label logs patch port-forward replace rollout run scale top uncordon version wait")
	// Resources of Kubernetes that pages name.
	builtin = strings.Fields("all cm configmap configmaps cronjob cronjobs crd crds customresourcedefinition customresourcedefinitions deploy deployment deployments " +
		"endpoints endpointslices events job jobs lease leases namespace namespaces networkpolicy node nodes ns persistentvolumeclaim pod pods pvc " +
		"resourcequota role rolebinding secret secrets service serviceaccount serviceaccounts services svc")
	flagsOfKubectl = strings.Fields("--all --all-namespaces -A --as --cascade --context --dry-run --field-manager --field-selector --filename -f --follow " +
		"--for --force-conflicts --from-file --from-literal --ignore-not-found --image --kustomize -k --namespace -n --output -o --overwrite --patch -p " +
		"--prefix --previous --raw --recursive --replicas --selector -l --list --server-side --show-labels --since --sort-by --subresource --tail --timeout --type --watch -w")
	helm = strings.Fields("dependency get history install lint list package pull push repo rollback show status template test uninstall upgrade version")
	// Programs that pages use and that this repository does not make.
	programs = strings.Fields("aws cargo cat cd curl cut docker duckdb echo eval export flux git go gofmt grep head jq ln mc mkdir openssl python3 sha256sum skopeo sort ssh-keygen tail uniq wc xargs zstd")
)

// repository is what commands in pages may refer to.
type repository struct {
	api     map[string]resource
	values  map[string]any
	targets []string
	crates  []string
	// Conditions that `kubectl wait` may wait for.
	conditions []string
	plugin     plugin
	top        string
}

// wrongCommands names what nobody can type in the sh and console blocks: commands, targets, resources, flags, fields and chart
// values that do not exist. In a console block only lines that begin with `$ ` are commands. In blocks without a language, lines
// that begin with kubectl, helm or make are.
func wrongCommands(all []page, repository repository) []string {
	var problems []string
	for _, p := range all {
		for _, b := range p.blocks() {
			for _, command := range commandsOf(b) {
				for _, part := range pipeline(command.text) {
					for _, problem := range repository.wrongCommand(part) {
						problems = append(problems, fmt.Sprintf("%s:%d: %s", p.path, command.line, problem))
					}
				}
			}
		}
	}
	return problems
}

type command struct {
	line int
	text string
}

var ours = regexp.MustCompile(`^(kubectl|helm|make) `)

// commandsOf gives the commands of a block, each on one line: continued lines are joined, here-documents left out.
func commandsOf(b block) []command {
	var found []command
	var end string
	continued := false
	for i, line := range strings.Split(b.text, "\n") {
		if end != "" {
			if strings.TrimSpace(line) == end {
				end = ""
			}
			continue
		}
		switch {
		case continued:
			found[len(found)-1].text += " " + strings.TrimSpace(line)
		case b.is("console"):
			rest, is := strings.CutPrefix(line, "$ ")
			if !is {
				continue
			}
			found = append(found, command{b.line + i, rest})
		case b.is("sh") && strings.TrimSpace(line) != "" && !strings.HasPrefix(strings.TrimSpace(line), "#"):
			found = append(found, command{b.line + i, strings.TrimSpace(line)})
		case len(b.info) == 0 && ours.MatchString(line):
			found = append(found, command{b.line + i, line})
		default:
			continue
		}
		last := &found[len(found)-1]
		last.text, continued = strings.CutSuffix(last.text, "\\")
		if _, word, is := strings.Cut(last.text, "<<"); is {
			end = strings.Trim(strings.Fields(word)[0], "-'\"")
			last.text, _, _ = strings.Cut(last.text, "<<")
		}
	}
	return found
}

// pipeline cuts a line into its simple commands, each as words. Quotes are honoured, a comment at the end is left out, what
// stands in $(…) is a command too.
func pipeline(line string) [][]string {
	var all [][]string
	var words []string
	var word strings.Builder
	var quote rune
	inWord := false
	endWord := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	endCommand := func() {
		endWord()
		if len(words) > 0 {
			all = append(all, words)
		}
		words = nil
	}
	runes := []rune(line)
	for i := 0; i < len(runes); i++ {
		char := runes[i]
		switch {
		case quote != 0:
			if char == quote {
				quote = 0
			} else {
				word.WriteRune(char)
			}
		case char == '\'' || char == '"':
			quote, inWord = char, true
		case char == '$' && i+1 < len(runes) && runes[i+1] == '(':
			depth, j := 1, i+2
			for ; j < len(runes) && depth > 0; j++ {
				switch runes[j] {
				case '(':
					depth++
				case ')':
					depth--
				}
			}
			all = append(all, pipeline(string(runes[i+2:j-1]))...)
			word.WriteString("$()")
			inWord = true
			i = j - 1
		case char == ' ' || char == '\t':
			endWord()
		case char == '#' && !inWord:
			endCommand()
			return all
		case char == '|' || char == ';' || char == '&':
			endCommand()
		default:
			word.WriteRune(char)
			inWord = true
		}
	}
	endCommand()
	return all
}

var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

func (r repository) wrongCommand(words []string) []string {
	for len(words) > 0 && assignment.MatchString(words[0]) {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil
	}
	switch name, args := words[0], words[1:]; {
	case name == "kubectl":
		return r.wrongKubectl(args)
	case name == "helm":
		return r.wrongHelm(args)
	case name == "make":
		return r.wrongMake(args)
	case name == "collect-worker":
		return wrongPreview(args)
	case name == "cargo":
		return r.wrongCargo(args)
	case strings.Contains(name, "/"):
		if _, err := os.Stat(filepath.Join(r.top, name)); err != nil {
			return []string{fmt.Sprintf("there is no %s", name)}
		}
		return nil
	case slices.Contains(programs, name):
		return nil
	default:
		return []string{fmt.Sprintf("%s is no command that is known here; if readers have it, add it to `programs` in tests/docs/commands.go", name)}
	}
}

// parsed takes a command's words apart: what is no flag, and the flags with their values.
func parsed(args []string) (plain []string, flags [][2]string) {
	// Flags that stand alone; every other one takes a value.
	alone := strings.Fields("--all --all-namespaces -A --follow --force-conflicts --ignore-not-found --overwrite --previous --recursive --server-side " +
		"--show-labels --watch -w --install --create-namespace --wait --take-ownership --devel --reuse-values --reset-then-reuse-values --help")
	for i := 0; i < len(args); i++ {
		word := args[i]
		if !strings.HasPrefix(word, "-") || word == "-" {
			plain = append(plain, word)
			continue
		}
		name, value, has := strings.Cut(word, "=")
		if !has && !slices.Contains(alone, name) && i+1 < len(args) {
			i++
			value = args[i]
		}
		flags = append(flags, [2]string{name, value})
	}
	return plain, flags
}

func (r repository) wrongKubectl(args []string) []string {
	if len(args) > 0 && args[0] == "collect" {
		return r.plugin.wrong(args[1:])
	}
	plain, flags := parsed(args)
	var problems []string
	for _, flag := range flags {
		if !slices.Contains(flagsOfKubectl, flag[0]) {
			problems = append(problems, fmt.Sprintf("kubectl: the flag %s is not known here", flag[0]))
		}
	}
	if len(plain) == 0 {
		return append(problems, "kubectl without a verb")
	}
	verb, plain := plain[0], plain[1:]
	if !slices.Contains(verbs, verb) {
		return append(problems, fmt.Sprintf("kubectl has no command %s", verb))
	}
	if verb == "rollout" && len(plain) > 0 {
		plain = plain[1:]
	}
	if !slices.Contains(strings.Fields("annotate delete describe edit explain get label patch rollout scale wait"), verb) || len(plain) == 0 {
		return problems
	}
	kinds, _, _ := strings.Cut(plain[0], "/")
	custom := false
	for kind := range strings.SplitSeq(kinds, ",") {
		kind, path, _ := strings.Cut(kind, ".")
		switch {
		case slices.Contains(names(r.api), kind):
			custom = true
			if verb == "explain" && path != "" && !anyHas(r.api, strings.Split(path, ".")) {
				problems = append(problems, fmt.Sprintf("kubectl explain: there is no %s", path))
			}
		case !slices.Contains(builtin, kind):
			problems = append(problems, fmt.Sprintf("there is no resource %s", kind))
		}
	}
	if custom {
		problems = append(problems, r.wrongFlags(flags)...)
	}
	return problems
}

// wrongFlags judges what a command says about the resources of this API.
func (r repository) wrongFlags(flags [][2]string) []string {
	var problems []string
	for _, flag := range flags {
		switch flag[0] {
		case "--for":
			condition, is := strings.CutPrefix(flag[1], "condition=")
			condition, _, _ = strings.Cut(condition, "=")
			if is && !slices.Contains(r.conditions, condition) {
				problems = append(problems, fmt.Sprintf("no object has a condition %s", condition))
			}
		case "--field-selector":
			for selector := range strings.SplitSeq(flag[1], ",") {
				name, _, _ := strings.Cut(strings.ReplaceAll(selector, "!=", "="), "=")
				if !r.selectable(name) {
					problems = append(problems, fmt.Sprintf("no resource can be selected by the field %s", name))
				}
			}
		case "-p", "--patch":
			problems = append(problems, r.wrongPatch(flag[1])...)
		}
	}
	return problems
}

func (r repository) selectable(name string) bool {
	if name == "metadata.name" || name == "metadata.namespace" {
		return true
	}
	for _, resource := range r.api {
		for _, field := range resource.definition.Spec.Versions[0].SelectableFields {
			if field.JSONPath == "."+name {
				return true
			}
		}
	}
	return false
}

func (r repository) wrongPatch(text string) []string {
	var patch map[string]any
	if err := json.Unmarshal([]byte(text), &patch); err != nil {
		return []string{fmt.Sprintf("the patch %s: %v", text, err)}
	}
	options := schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	var problems []string
	for _, path := range pruning.PruneWithOptions(patch, r.api["CollectTask"].structural, true, options) {
		problems = append(problems, fmt.Sprintf("the patch sets %s, which is no field", path))
	}
	return problems
}

func (r repository) wrongHelm(args []string) []string {
	plain, flags := parsed(args)
	var problems []string
	if len(plain) == 0 || !slices.Contains(helm, plain[0]) {
		problems = append(problems, fmt.Sprintf("helm has no command %v", plain))
	}
	for _, word := range plain {
		if strings.HasPrefix(word, "charts/") {
			if _, err := os.Stat(filepath.Join(r.top, word)); err != nil {
				problems = append(problems, fmt.Sprintf("there is no %s", word))
			}
		}
	}
	for _, flag := range flags {
		if flag[0] != "--set" && flag[0] != "--set-string" {
			continue
		}
		for _, pair := range splitSet(flag[1]) {
			name, _, _ := strings.Cut(pair, "=")
			if !hasValue(r.values, segments(name)) {
				problems = append(problems, fmt.Sprintf("%s is no value of the chart", name))
			}
		}
	}
	return problems
}

// splitSet cuts the argument of --set at its commas, but for those in braces.
func splitSet(text string) []string {
	depth := 0
	return strings.FieldsFunc(text, func(char rune) bool {
		switch char {
		case '{':
			depth++
		case '}':
			depth--
		}
		return char == ',' && depth == 0
	})
}

func (r repository) wrongMake(args []string) []string {
	var problems []string
	for _, word := range args {
		if !strings.Contains(word, "=") && !strings.HasPrefix(word, "-") && !slices.Contains(r.targets, word) {
			problems = append(problems, fmt.Sprintf("the Makefile has no target %s", word))
		}
	}
	return problems
}

func (r repository) wrongCargo(args []string) []string {
	for i, word := range args {
		if (word == "-p" || word == "--package") && i+1 < len(args) && !slices.Contains(r.crates, args[i+1]) {
			return []string{fmt.Sprintf("there is no crate %s", args[i+1])}
		}
		if word == "--" {
			if slices.Contains(args[:i], "collect-worker") {
				return wrongPreview(args[i+1:])
			}
			break
		}
	}
	return nil
}

// wrongPreview knows the one subcommand of the worker.
func wrongPreview(args []string) []string {
	var problems []string
	if len(args) == 0 || args[0] != "preview" {
		return []string{"collect-worker has one subcommand: preview"}
	}
	for _, word := range args[1:] {
		name, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(name, "-") && !slices.Contains([]string{"-f", "--file", "--value", "--secrets-dir"}, name) {
			problems = append(problems, fmt.Sprintf("collect-worker preview has no flag %s", name))
		}
	}
	return problems
}
