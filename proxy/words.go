package proxy

import "bytes"

// nameBits are names, in lower case, that are looked for in texts as whole words, and what each
// tells, by bits. It is not changed once it is shared. The zero value has none.
type nameBits struct {
	words  map[string]uint32
	others []oddName
}

// oddName is a name that is no single word, as "a name" or a$b.
type oddName struct {
	name []byte
	bits uint32
}

func (n *nameBits) add(name []byte, bits uint32) {
	name = lowered(name)
	if !isOneWord(name) {
		n.others = append(n.others, oddName{name, bits})
		return
	}
	if n.words == nil {
		n.words = make(map[string]uint32)
	}
	n.words[string(name)] |= bits
}

// of is what a name in lower case tells.
func (n *nameBits) of(name string) uint32 {
	bits := n.words[name]
	for _, o := range n.others {
		if string(o.name) == name {
			bits |= o.bits
		}
	}
	return bits
}

// in is what all names tell that a text, in lower case, has in it. Their number is no matter, but
// for odd ones.
func (n *nameBits) in(sql []byte) (bits uint32) {
	if len(n.words) > 0 {
		eachWord(sql, func(word []byte) { bits |= n.words[string(word)] })
	}
	for _, o := range n.others {
		if bits&o.bits != o.bits && hasName(sql, o.name) {
			bits |= o.bits
		}
	}
	return bits
}

// eachWord calls do with each word of a text in lower case, and with the word behind an escape, as
// in E'\nf()', twice: once with the letter of that.
func eachWord(sql []byte, do func(word []byte)) {
	for i := 0; i < len(sql); i++ {
		if !isWord(sql, i) {
			continue
		}
		start := i
		for isWord(sql, i) {
			i++
		}
		do(sql[start:i])
		if start > 0 && sql[start-1] == '\\' {
			do(sql[start+1 : i])
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

// hasName tells that a text, in lower case, has a name in it, with nothing that joins it.
func hasName(sql, name []byte) bool {
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
