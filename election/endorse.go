package election

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// endorsement is what a voter must not forget: the highest epoch it endorsed, and the one below
// which it promises nothing because it may have endorsed that before its disk was lost.
type endorsement struct {
	V        int    `json:"v"`
	Endorsed uint64 `json:"endorsed"`
	Floor    uint64 `json:"floor,omitempty"`
	// Set is the version of the voter set that was taken: nothing is promised under older ones.
	Set uint64 `json:"set,omitempty"`
	// Recovered is that of the newest state: a node that was not part of a recovery finds out by
	// it, before it takes part in Raft with the log of a group that is no more.
	Recovered uint64 `json:"recovered,omitempty"`
}

// endorsementFile keeps the endorsement of a voter on disk, apart from the Raft log.
type endorsementFile struct{ path string }

// load reads the file; blank tells that there was none.
func (f endorsementFile) load() (e endorsement, blank bool, err error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, true, nil
	}
	if err != nil {
		return e, false, fmt.Errorf("read endorsement: %w", err)
	}
	if err := json.Unmarshal(b, &e); err != nil || e.V < 1 {
		return e, false, fmt.Errorf("read endorsement: %s is damaged; restore it, or remove "+
			"this node's raft directory as a whole and let it join anew", f.path)
	}
	if e.V > Version {
		return e, false, fmt.Errorf("read endorsement: %s is of version %d, newer than %d",
			f.path, e.V, Version)
	}
	return e, false, nil
}

// save makes it durable before it returns.
func (f endorsementFile) save(e endorsement) error {
	b, err := json.Marshal(e)
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
