package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// secretBytesMax bounds a password file.
const secretBytesMax = 1024

// ReadSecret reads a file with one line, a password or a token, which nobody but its owner may
// read.
func ReadSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("%w; the file and its directory must belong to the user that runs "+
			"this", err)
	}
	if err != nil {
		return "", fmt.Errorf("%w; `holdfast init` makes it, copy it from another node", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %v, others could read it: chmod 0600", path,
			info.Mode())
	}
	if info.Size() > secretBytesMax {
		return "", fmt.Errorf("%s has %d bytes, at most %d are allowed", path, info.Size(),
			secretBytesMax)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("%w; it must belong to the user that runs this", err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	if text == "" || strings.ContainsAny(text, "\r\n\x00") {
		return "", fmt.Errorf("%s must hold one line with a password", path)
	}
	return text, nil
}
