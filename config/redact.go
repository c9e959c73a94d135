package config

import (
	"regexp"
	"slices"
	"strings"
)

// redacted stands for what is not shown.
const redacted = "***"

// secretWords mark a setting whose value may carry a secret: connection strings, and commands
// with credentials in them.
var secretWords = regexp.MustCompile(
	`(?i)passw|passphrase|secret|token|credential|conninfo|_command|private|api_?key`)

// urlPassword is the password in scheme://user:password@host.
var urlPassword = regexp.MustCompile(`(://[^/:@\s]+:)[^@\s]+@`)

// Redacted returns a copy that can be shown: the configuration names files of secrets and holds
// none itself, but what users put into their own settings may.
func (c Config) Redacted() Config {
	c.Postgres.Settings = slices.Clone(c.Postgres.Settings)
	for i, s := range c.Postgres.Settings {
		c.Postgres.Settings[i] = redactSetting(s)
	}
	c.Postgres.HBA = slices.Clone(c.Postgres.HBA)
	for i, line := range c.Postgres.HBA {
		c.Postgres.HBA[i] = redactHBA(line)
	}
	return c
}

func redactSetting(setting string) string {
	name, _, ok := strings.Cut(setting, "=")
	if !ok || secretWords.MatchString(setting) {
		return strings.TrimSpace(name) + " = " + redacted
	}
	return urlPassword.ReplaceAllString(setting, "${1}"+redacted+"@")
}

// hbaSecret are the options of pg_hba.conf whose values are secrets.
var hbaSecret = regexp.MustCompile(`(?i)\b(ldapbindpasswd|radiussecrets)=("[^"]*"|\S+)`)

func redactHBA(line string) string {
	return hbaSecret.ReplaceAllString(line, "${1}="+redacted)
}
