package proxy

import "bytes"

// wordSet are names, in lower case, that are looked for in texts as whole words. It is not changed
// once it is shared. nil is none.
type wordSet struct {
	words  map[string]struct{}
	others [][]byte // those that are no single word, as "a name" or a$b
}

func (w *wordSet) add(name []byte) {
	name = lowered(name)
	if !isOneWord(name) {
		w.others = append(w.others, name)
		return
	}
	if w.words == nil {
		w.words = make(map[string]struct{})
	}
	w.words[string(name)] = struct{}{}
}

// has tells that a name in lower case is one of them.
func (w *wordSet) has(name string) bool {
	if _, ok := w.words[name]; ok {
		return true
	}
	for _, o := range w.others {
		if string(o) == name {
			return true
		}
	}
	return false
}

func (w *wordSet) len() int {
	if w == nil {
		return 0
	}
	return len(w.words) + len(w.others)
}

// in tells that a text, in lower case, has one of the names in it. It takes the same time however
// many words there are.
func (w *wordSet) in(sql []byte) bool {
	if w.len() == 0 {
		return false
	}
	found := false
	if len(w.words) > 0 {
		eachWord(sql, func(word []byte) bool {
			_, found = w.words[string(word)]
			return !found
		})
	}
	return found || len(w.others) > 0 && names(sql, w.others)
}

// eachWord calls do with each word of a text in lower case until it returns false, and with the
// word behind an escape, as in E'\nf()', twice: once with its first letter.
func eachWord(sql []byte, do func(word []byte) bool) {
	for i := 0; i < len(sql); i++ {
		if !isWord(sql, i) {
			continue
		}
		start := i
		for isWord(sql, i) {
			i++
		}
		if !do(sql[start:i]) || start > 0 && sql[start-1] == '\\' && !do(sql[start+1:i]) {
			return
		}
	}
}

// isOneWord tells of a name that is a word.
func isOneWord(name []byte) bool {
	for i := range name {
		if !isWord(name, i) {
			return false
		}
	}
	return true
}

// lowered is a text in lower case as the server makes names of it: bytes beyond ASCII stay, and so
// does the place of each.
func lowered(sql []byte) []byte {
	out := make([]byte, len(sql))
	for i, c := range sql {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		out[i] = c
	}
	return out
}

// names tells that a text, in lower case, has one of the names in it, as a whole word.
func names(sql []byte, of [][]byte) bool {
	for _, name := range of {
		for at := 0; len(name) > 0; at++ {
			i := bytes.Index(sql[at:], name)
			if i < 0 {
				break
			}
			at += i
			if !joinsWord(sql, at-1) && !isWord(sql, at+len(name)) {
				return true
			}
		}
	}
	return false
}

// isWord tells that there is a character of a word.
func isWord(sql []byte, at int) bool {
	if at < 0 || at >= len(sql) {
		return false
	}
	c := sql[at]
	return c == '_' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
}

// joinsWord tells that there is one which belongs to what follows: not that of an escape, as in
// E'\nf()'.
func joinsWord(sql []byte, at int) bool {
	return isWord(sql, at) && (at == 0 || sql[at-1] != '\\')
}

// mentionsRoutine tells that a text has the word FUNCTION, PROCEDURE, ROUTINE, TRIGGER or RULE, or
// one for what may depend on them.
func mentionsRoutine(sql []byte) bool {
	sql = bytes.ToLower(sql)
	for _, word := range []string{
		"function", "procedure", "routine", "trigger", "rule", "view", "table", "policy", "extension",
		"domain", "aggregate", "operator",
	} {
		if bytes.Contains(sql, []byte(word)) {
			return true
		}
	}
	return false
}
