package config

import (
	"fmt"
	"reflect"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// YAML returns the tree as a file that Parse reads back to the same tree.
func (c Config) YAML() []byte {
	out, err := yaml.Marshal(node(&root, reflect.ValueOf(c)))
	if err != nil {
		// The tree has only texts and numbers; there is nothing that cannot be written.
		panic("BUG: config: marshal: " + err.Error())
	}
	return out
}

// node makes the YAML node of a value, keys in the order of the tree.
func node(f *field, v reflect.Value) *yaml.Node {
	switch f.kind {
	case kindSection:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for i := range f.fields {
			c := &f.fields[i]
			n.Content = append(n.Content, text(c.key), node(c, v.Field(c.index)))
		}
		return n
	case kindSections, kindStrings:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		item := field{kind: kindString}
		if f.kind == kindSections {
			item = field{kind: kindSection, fields: f.fields}
		}
		for i := range v.Len() {
			n.Content = append(n.Content, node(&item, v.Index(i)))
		}
		if v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case kindString:
		return text(v.String())
	case kindBool, kindInt, kindDuration:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: plain(v)}
	}
	panic("BUG: config: kind " + strconv.Itoa(int(f.kind)))
}

// text makes a node that reads back as text: the encoder adds quotes where they are needed.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// plain returns a value as it is written in the file.
func plain(v reflect.Value) string {
	if d, ok := v.Interface().(time.Duration); ok {
		return d.String()
	}
	return fmt.Sprint(v.Interface())
}
