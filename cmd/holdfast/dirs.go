package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/config"
)

// makeDirs makes what is missing above PGDATA on a node that runs as root, where PostgreSQL has
// another account: raft makes data_dir for the node alone, and the agent would then find that
// PostgreSQL cannot enter it. Others may pass through the directories made here, not list them;
// the Raft log and the agent's state below stay private. A directory that is there already is
// its owner's to open.
func makeDirs(cfg config.Config) error {
	if os.Geteuid() != 0 || !cfg.Postgres.Enabled {
		return nil
	}
	return makePassable(filepath.Dir(cfg.Postgres.DataDir))
}

// makePassable makes a directory and those above it that are missing, whatever the umask.
func makePassable(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if up := filepath.Dir(dir); up != dir {
		if err := makePassable(up); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return fmt.Errorf("make directory for postgres.data_dir: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return fmt.Errorf("make directory for postgres.data_dir: %w", err)
	}
	return nil
}
