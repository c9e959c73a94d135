package config_test

import (
	"path/filepath"
	"testing"

	"holdfast/config"
)

// The files that are installed with the units load as they are.
func TestDeployedExamplesLoad(t *testing.T) {
	files, err := filepath.Glob("../deploy/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		if _, err := config.Load(file); err != nil {
			t.Error(err)
		}
	}
}
