package election

import (
	"strings"
	"testing"
)

// TestInitdbOptions: what postgres.checksums says holds for each version, whatever its initdb does
// by itself.
func TestInitdbOptions(t *testing.T) {
	for _, tt := range []struct {
		cfg   AgentConfig
		major int
		want  string
	}{
		{AgentConfig{}, 17, ""},
		{AgentConfig{}, 18, "--no-data-checksums"},
		{AgentConfig{Checksums: true}, 18, "--data-checksums"},
		{AgentConfig{Checksums: true, Locale: "C", Encoding: "UTF8"}, 13,
			"--data-checksums --locale=C --encoding=UTF8"},
	} {
		if got := strings.Join(initdbOptions(&tt.cfg, tt.major), " "); got != tt.want {
			t.Errorf("%+v on %d: %q, want %q", tt.cfg, tt.major, got, tt.want)
		}
	}
}
