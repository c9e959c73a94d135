package config

import (
	"fmt"
	"reflect"
)

// Change is one value that differs between two trees.
type Change struct {
	Key string
	// Old and New are the values as text, secrets left out.
	Old string
	New string
	// Reloadable tells that a running node can take the new value.
	Reloadable bool
}

// Diff returns what differs between two trees, in the order of the tree. A node that is told to
// read its file again takes the reloadable changes and logs the others as waiting for a restart.
func Diff(before, after Config) []Change {
	var changes []Change
	diff(&root, "", pair{reflect.ValueOf(before), reflect.ValueOf(after)},
		pair{reflect.ValueOf(before.Redacted()), reflect.ValueOf(after.Redacted())}, &changes)
	return changes
}

// pair is the same part of two trees.
type pair struct{ before, after reflect.Value }

func (p pair) field(i int) pair { return pair{p.before.Field(i), p.after.Field(i)} }

func diff(f *field, path string, real, shown pair, changes *[]Change) {
	for i := range f.fields {
		c := &f.fields[i]
		key := join(path, c.key)
		r, s := real.field(c.index), shown.field(c.index)
		if c.kind == kindSection {
			diff(c, key, r, s, changes)
			continue
		}
		if reflect.DeepEqual(r.before.Interface(), r.after.Interface()) {
			continue
		}
		*changes = append(*changes, Change{Key: key, Old: fmt.Sprint(s.before.Interface()),
			New: fmt.Sprint(s.after.Interface()), Reloadable: c.reload})
	}
}

// Reload returns the tree that a running node should go on with: before, with the reloadable
// values of after.
func Reload(before, after Config) Config {
	take(&root, reflect.ValueOf(&before).Elem(), reflect.ValueOf(after))
	return before
}

func take(f *field, into, from reflect.Value) {
	for i := range f.fields {
		c := &f.fields[i]
		switch {
		case c.kind == kindSection:
			take(c, into.Field(c.index), from.Field(c.index))
		case c.reload:
			into.Field(c.index).Set(from.Field(c.index))
		}
	}
}
