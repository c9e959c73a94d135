package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// endorsement is what a voter must not forget: the highest epoch it endorsed.
type endorsement struct {
	V        int    `json:"v"`
	Endorsed uint64 `json:"endorsed"`
}

// endorsementFile keeps the endorsement of a voter on disk, apart from the Raft log.
type endorsementFile struct{ path string }

// load reads the file; first tells that there was none, so that this voter has never promised
// anything.
func (f endorsementFile) load() (epoch uint64, first bool, err error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read endorsement: %w", err)
	}
	var e endorsement
	if err := json.Unmarshal(b, &e); err != nil || e.V < 1 {
		return 0, false, fmt.Errorf("read endorsement: %s is damaged; restore it, or remove "+
			"this node's raft directory as a whole and let it join anew", f.path)
	}
	if e.V > Version {
		return 0, false, fmt.Errorf("read endorsement: %s is of version %d, newer than %d",
			f.path, e.V, Version)
	}
	return e.Endorsed, false, nil
}

// save makes the epoch durable before it returns.
func (f endorsementFile) save(epoch uint64) error {
	b, err := json.Marshal(endorsement{V: Version, Endorsed: epoch})
	if err != nil {
		return fmt.Errorf("write endorsement: %w", err)
	}
	if err := writeSynced(f.path, b, 0o600); err != nil {
		return fmt.Errorf("write endorsement: %w", err)
	}
	return nil
}

// writeSynced replaces a file such that after a power loss it has either the old or the new
// content, and the new one once this has returned.
func writeSynced(path string, b []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the entries of a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
