package proxy

import (
	"slices"
	"sync"

	"holdfast/pgwire"
)

// paramSet is what a server has reported of its parameters. Sessions share one list where they
// can: most clients of an application are told the same.
type paramSet struct {
	list   []pgwire.Param
	shared bool
}

func (s *paramSet) get(name string) (value string, ok bool) {
	for i := range s.list {
		if s.list[i].Name == name {
			return s.list[i].Value, true
		}
	}
	return "", false
}

// value is the parameter's value, empty if it was never reported.
func (s *paramSet) value(name string) string {
	v, _ := s.get(name)
	return v
}

func (s *paramSet) set(name, value string) {
	if s.shared {
		s.list, s.shared = slices.Clone(s.list), false
	}
	for i := range s.list {
		if s.list[i].Name == name {
			s.list[i].Value = value
			return
		}
	}
	s.list = append(s.list, pgwire.Param{Name: name, Value: value})
}

// sharedParamsMax bounds the lists that are kept for sharing.
const sharedParamsMax = 16

// paramLists are lists that others may have as well. Safe for concurrent use.
type paramLists struct {
	mu    sync.Mutex
	lists [][]pgwire.Param
}

// share makes s one of the lists if it equals one. The oldest gives way to a new one.
func (l *paramLists) share(s *paramSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.shared = true
	for i, have := range l.lists {
		if slices.Equal(have, s.list) {
			s.list = have
			copy(l.lists[1:i+1], l.lists[:i])
			l.lists[0] = have
			return
		}
	}
	s.list = slices.Clip(s.list)
	if len(l.lists) < sharedParamsMax {
		l.lists = append(l.lists, nil)
	}
	copy(l.lists[1:], l.lists)
	l.lists[0] = s.list
}
