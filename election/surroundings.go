package election

import "errors"

// CheckFiles reads the CA, the certificate and the key as New does, and changes nothing.
func (c Config) CheckFiles() error {
	_, err := loadIdentity(c.Name, c.CAFile, c.CertFile, c.KeyFile)
	return err
}

// CheckSurroundings looks for the password files, PostgreSQL's programs and its account as
// NewPostgresAgent does, and changes nothing. It returns what is wrong by the key that names it.
func (c AgentConfig) CheckSurroundings() map[string]error {
	found := map[string]error{}
	if _, err := loadAgentSecrets(c.SecretsDir); err != nil {
		found["secrets_dir"] = err
	}
	if _, err := pgFindBin(c.BinDir); err != nil {
		found["bin_dir"] = err
	}
	account, err := pgLookupAccount(c.OSUser)
	if err != nil {
		found["os_user"] = err
	} else if err := c.checkServerTLS(account); err != nil {
		found["server_tls"] = err
	}
	return found
}

// CheckData looks whether the data directory holds what somebody else made. It may be asked before
// Start, and changes nothing; a directory that cannot be read is none of its business.
func (a *PostgresAgent) CheckData() error {
	if kind, why := a.inspectDir(); kind == pgDirForeign {
		return errors.New(why)
	}
	return nil
}
