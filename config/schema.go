package config

import (
	"reflect"
	"strconv"
	"strings"
	"time"
)

// kind is how a value is written.
type kind int

const (
	kindSection  kind = iota // a mapping with known keys
	kindString               // text
	kindBool                 // true or false
	kindInt                  // a decimal number
	kindDuration             // a number with a unit
	kindStrings              // a list of text
	kindSections             // a list of mappings with known keys
)

// field is one key of the schema.
type field struct {
	key     string
	kind    kind
	allowed []string // of kindString; empty if any
	min     int      // of kindInt
	max     int
	fields  []field // of a section or the items of kindSections
	index   int     // in the Go struct
}

// root is the schema of a Config.
var root = field{kind: kindSection, fields: fieldsOf(reflect.TypeFor[Config]())}

// fieldsOf makes the schema of a struct. A field it has no rule for is a mistake in the tree that
// the first test finds, hence the panic.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if !sf.IsExported() {
			continue
		}
		f := field{
			key:   sf.Tag.Get("mapstructure"),
			index: i,
			min:   bound(sf.Tag.Get("min"), 0),
			max:   bound(sf.Tag.Get("max"), 1<<31-1),
		}
		if s := sf.Tag.Get("oneof"); s != "" {
			f.allowed = strings.Split(s, "|")
		}
		switch {
		case sf.Type == reflect.TypeFor[time.Duration]():
			f.kind = kindDuration
		case sf.Type.Kind() == reflect.String:
			f.kind = kindString
		case sf.Type.Kind() == reflect.Bool:
			f.kind = kindBool
		case sf.Type.Kind() == reflect.Int:
			f.kind = kindInt
		case sf.Type == reflect.TypeFor[[]string]():
			f.kind = kindStrings
		case sf.Type.Kind() == reflect.Slice && sf.Type.Elem().Kind() == reflect.Struct:
			f.kind, f.fields = kindSections, fieldsOf(sf.Type.Elem())
		case sf.Type.Kind() == reflect.Struct:
			f.kind, f.fields = kindSection, fieldsOf(sf.Type)
		default:
			panic("BUG: config: no rule for a field of type " + sf.Type.String())
		}
		if f.key == "" {
			panic("BUG: config: no key for field " + sf.Name)
		}
		fields = append(fields, f)
	}
	return fields
}

func bound(text string, otherwise int) int {
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		panic("BUG: config: bound " + text)
	}
	return n
}

// child returns the field of a key; keys are exact, unlike viper's.
func (f *field) child(key string) *field {
	for i := range f.fields {
		if f.fields[i].key == key {
			return &f.fields[i]
		}
	}
	return nil
}

// find returns the field of a path, indexes of lists left out; nil if there is none.
func (f *field) find(path string) *field {
	for _, part := range strings.Split(path, ".") {
		key, _, _ := strings.Cut(part, "[")
		if f = f.child(key); f == nil {
			return nil
		}
	}
	return f
}

// keys returns the keys that a section may have.
func (f *field) keys() []string {
	keys := make([]string, len(f.fields))
	for i := range f.fields {
		keys[i] = f.fields[i].key
	}
	return keys
}

// eachLeaf calls fn for every key that has a value of its own, in the order of the tree.
func eachLeaf(f *field, path string, v reflect.Value, fn func(*field, string, reflect.Value)) {
	for i := range f.fields {
		c := &f.fields[i]
		p := join(path, c.key)
		cv := v.Field(c.index)
		if c.kind == kindSection {
			eachLeaf(c, p, cv, fn)
			continue
		}
		fn(c, p, cv)
	}
}

// Keys returns every key that has a value, as a path with dots, in the order of the tree.
func Keys() []string {
	var keys []string
	eachLeaf(&root, "", reflect.ValueOf(Config{}), func(_ *field, path string, _ reflect.Value) {
		keys = append(keys, path)
	})
	return keys
}

// EnvName returns the name of the environment variable of a key.
func EnvName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
