package config_test

import (
	"strings"
	"testing"

	"holdfast/config"
)

func TestRedactedShowsNoSecret(t *testing.T) {
	cfg := config.Default()
	cfg.Postgres.Settings = []string{
		"shared_buffers = 4GB",
		"archive_command = 'push --key hunter2 %p'",
		"myapp.api_key = 'hunter2'",
		"foo.url = 'https://me:hunter2@host/x'",
		"ssl_passphrase_command = 'echo hunter2'",
		"hunter2",
	}
	cfg.Postgres.HBA = []string{
		`host all all 10.0.0.0/8 ldap ldapbindpasswd=hunter2 ldapserver=x`,
		`host all all 10.0.0.0/8 radius radiussecrets="hunter2,hunter2"`,
	}
	text := string(cfg.Redacted().YAML())
	if n := strings.Count(text, "hunter2"); n != 1 {
		// The last setting has no name; what is no setting is refused by Load and shown whole.
		t.Errorf("the secret shows %d times in:\n%s", n, text)
	}
	for _, kept := range []string{"shared_buffers = 4GB", "ldapserver=x", "https://me:***@host/x"} {
		if !strings.Contains(text, kept) {
			t.Errorf("%q is gone from:\n%s", kept, text)
		}
	}
	if cfg.Postgres.Settings[2] != "myapp.api_key = 'hunter2'" {
		t.Error("the tree itself was changed")
	}
}
