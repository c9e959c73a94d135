package proxy

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// usersBytesMax bounds the file of roles.
const usersBytesMax = 1 << 20

// loadUsers reads a file of lines role:password, which nobody but its owner may read. A backslash
// takes the special meaning from a colon or a backslash in the role's name, as in a file of libpq's
// passwords. Errors name lines, and never what is in them.
func loadUsers(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %v, others could read it: chmod 0600", path,
			info.Mode())
	}
	if info.Size() > usersBytesMax {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", path, info.Size(),
			usersBytesMax)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	users := make(map[string]string)
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || line[0] == '#' {
			continue
		}
		role, password, err := cutUser(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
		users[role] = password
	}
	return users, nil
}

func cutUser(line string) (role, password string, err error) {
	var b strings.Builder
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\' && i+1 < len(line):
			i++
			b.WriteByte(line[i])
		case c == ':' && b.Len() > 0 && i+1 < len(line):
			return b.String(), line[i+1:], nil
		default:
			b.WriteByte(c)
		}
	}
	return "", "", errors.New("not role:password")
}
