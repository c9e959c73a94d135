package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// walker checks YAML nodes beside the schema and turns them into the plain values that viper
// merges. It goes on after a problem, so that all are told at once.
type walker struct {
	from     *origin
	problems Problems
	// env is the variable being read; empty while the file is.
	env string
}

// problemsMax bounds the list; a file with more is not a configuration.
const problemsMax = 50

func (w *walker) problem(key string, line int, format string, args ...any) {
	if len(w.problems) >= problemsMax {
		return
	}
	p := Problem{Key: key, File: w.from.file, Line: line, Env: w.env,
		Text: fmt.Sprintf(format, args...)}
	w.problems = append(w.problems, p)
}

// walkFile returns the file's values by key; nil with problems noted if it is not YAML.
func (w *walker) walkFile(data []byte) map[string]any {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		line, text := yamlError(err)
		w.problem("", line, "%s", text)
		return nil
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		line, text := next.Line, "a second document (---) is not allowed"
		if err != nil {
			line, text = yamlError(err)
		}
		w.problem("", line, "%s", text)
		return nil
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil
	}
	tree, _ := w.value(&root, "", doc.Content[0]).(map[string]any)
	return tree
}

// value checks a node against its field and returns its plain value, nil if it is null or wrong.
func (w *walker) value(f *field, key string, n *yaml.Node) any {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		w.problem(key, n.Line, "anchors and aliases are not allowed; write the value out")
		return nil
	}
	if isNull(n) {
		return nil
	}
	w.note(key, n.Line)
	switch f.kind {
	case kindSection:
		return w.section(f, key, n)
	case kindSections, kindStrings:
		return w.list(f, key, n)
	case kindString, kindBool, kindInt, kindDuration:
		return w.scalar(f, key, n)
	}
	panic("BUG: config: kind " + strconv.Itoa(int(f.kind)))
}

func (w *walker) note(key string, line int) {
	if w.env != "" {
		w.from.env[key] = w.env
		return
	}
	w.from.lines[key] = line
}

func (w *walker) section(f *field, key string, n *yaml.Node) any {
	if n.Kind != yaml.MappingNode {
		w.problem(key, n.Line, "is %s but must have keys: %s", describe(n),
			strings.Join(f.keys(), ", "))
		return nil
	}
	values := map[string]any{}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		path := join(key, clip(k.Value))
		if k.Kind != yaml.ScalarNode {
			w.problem(key, k.Line, "a key must be a word, not %s", describe(k))
			continue
		}
		c := f.child(k.Value)
		if c == nil {
			w.problem(path, k.Line, "unknown key; %s", suggest(k.Value, f.keys()))
			continue
		}
		if line, twice := seen[k.Value]; twice {
			w.problem(path, k.Line, "is there twice, first on line %d", line)
			continue
		}
		seen[k.Value] = k.Line
		if got := w.value(c, path, v); got != nil {
			values[c.key] = got
		}
	}
	return values
}

// listItemsMax bounds every list.
const listItemsMax = 1000

func (w *walker) list(f *field, key string, n *yaml.Node) any {
	if n.Kind != yaml.SequenceNode {
		w.problem(key, n.Line, "is %s but must be a list: [a, b], or one \"- item\" on a line",
			describe(n))
		return nil
	}
	if len(n.Content) > listItemsMax {
		w.problem(key, n.Line, "has %d items; at most %d are allowed", len(n.Content),
			listItemsMax)
		return nil
	}
	item := field{kind: kindString}
	if f.kind == kindSections {
		item = field{kind: kindSection, fields: f.fields}
	}
	items := make([]any, 0, len(n.Content))
	for i, c := range n.Content {
		path := fmt.Sprintf("%s[%d]", key, i)
		if isNull(c) {
			w.problem(path, c.Line, "is empty")
			continue
		}
		if got := w.value(&item, path, c); got != nil {
			items = append(items, got)
		}
	}
	return items
}

// wholeNumber is what both passes read alike: no sign, no base prefix, no leading zero.
var wholeNumber = regexp.MustCompile(`^(0|[1-9][0-9]{0,9})$`)

func (w *walker) scalar(f *field, key string, n *yaml.Node) any {
	if n.Kind != yaml.ScalarNode {
		w.problem(key, n.Line, "is %s but must be %s", describe(n), f.wanted())
		return nil
	}
	text := n.Value
	switch f.kind {
	case kindString:
		if w.env == "" && n.ShortTag() != "!!str" {
			w.problem(key, n.Line, "%s reads as %s; put it in quotes", clip(text), describe(n))
			return nil
		}
		if len(f.allowed) > 0 && !contains(f.allowed, text) {
			w.problem(key, n.Line, "%q is not allowed; %s", clip(text), w.choose(f, text))
			return nil
		}
		if strings.ContainsAny(text, "\x00\n\r") {
			w.problem(key, n.Line, "must be one line of text")
			return nil
		}
		return text
	case kindBool:
		if text == "true" || text == "false" {
			return text == "true"
		}
	case kindInt:
		if i, err := strconv.Atoi(text); err == nil && wholeNumber.MatchString(text) {
			if i < f.min || i > f.max {
				w.problem(key, n.Line, "%d is out of range; allowed: %d to %d", i, f.min, f.max)
				return nil
			}
			return i
		}
	case kindDuration:
		if d, err := time.ParseDuration(text); err == nil {
			if d < 0 {
				w.problem(key, n.Line, "%s is negative", clip(text))
				return nil
			}
			return d
		}
	default:
		panic("BUG: config: scalar of kind " + strconv.Itoa(int(f.kind)))
	}
	w.problem(key, n.Line, "%q is not %s", clip(text), f.wanted())
	return nil
}

// choose is the hint for a word out of a short list: the list always, and the likely one.
func (w *walker) choose(f *field, got string) string {
	text := "allowed: " + strings.Join(f.allowed, ", ")
	if near := nearest(got, f.allowed); near != "" {
		text += "; did you mean " + near + "?"
	}
	return text
}

// wanted says how a value of the field is written.
func (f *field) wanted() string {
	switch f.kind {
	case kindBool:
		return "true or false"
	case kindInt:
		return fmt.Sprintf("a whole number, %d to %d", f.min, f.max)
	case kindDuration:
		return "a duration with a unit, such as 250ms, 15s or 1m30s"
	case kindString:
		return "text"
	default:
		return "a section or a list"
	}
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// describe says what a node is, in words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	default:
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "empty"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// clip keeps a message short whatever was written.
func clip(text string) string {
	const most = 60
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

func contains(list []string, word string) bool {
	for _, w := range list {
		if w == word {
			return true
		}
	}
	return false
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// yamlError splits the line from the text of the parser's error.
func yamlError(err error) (int, string) {
	text := err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, convErr := strconv.Atoi(m[1])
		if convErr == nil {
			return line, "not YAML: " + m[2]
		}
	}
	return 0, "not YAML: " + strings.TrimPrefix(text, "yaml: ")
}
