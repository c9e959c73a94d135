package proxy

import (
	"bytes"
	"testing"

	"holdfast/pgwire"
)

// The keys of an account last as long as any session has it, and are wiped with the last one.
func TestKeysEndWithTheLastSession(t *testing.T) {
	fresh := func() pgwire.Credentials {
		return pgwire.Credentials{ClientKey: bytes.Repeat([]byte{7}, 32),
			ServerKey: bytes.Repeat([]byte{8}, 32)}
	}
	isWiped := func(c pgwire.Credentials) bool {
		zero := make([]byte, 32)
		return bytes.Equal(c.ClientKey, zero) && bytes.Equal(c.ServerKey, zero)
	}
	login := []pgwire.Param{{Name: "user", Value: "app"}}
	p := &Proxy{}
	sessions := []*session{{proxy: p}, {proxy: p}, {proxy: p}}
	creds := make([]pgwire.Credentials, len(sessions))
	for i, s := range sessions {
		s.account, creds[i] = newAccount(login), fresh()
		s.prove(creds[i])
	}
	if sessions[1].account != sessions[0].account || isWiped(sessions[1].cred) {
		t.Fatal("sessions that are the same do not share an account with its keys")
	}
	if !isWiped(creds[1]) || !isWiped(creds[2]) {
		t.Error("keys that another account has already are left beside it")
	}
	for _, s := range sessions[:2] {
		p.accounts.release(s.account)
		if isWiped(creds[0]) {
			t.Fatal("they were wiped under another session")
		}
	}
	p.accounts.release(sessions[2].account)
	if !isWiped(creds[0]) || len(p.accounts.list) != 0 {
		t.Error("they outlive the last session")
	}
	// A new one does not come upon what was wiped.
	s := &session{proxy: p, account: newAccount(login)}
	s.prove(fresh())
	if s.account == sessions[0].account || isWiped(s.cred) {
		t.Error("a login got an account that was over")
	}
	// Credentials that nobody else may use, and a client that proved nothing.
	alone := &session{proxy: p, account: newAccount(login)}
	cred := pgwire.Credentials{ClientKey: bytes.Repeat([]byte{9}, 32)}
	alone.prove(cred)
	p.accounts.release(alone.account)
	if !bytes.Equal(cred.ClientKey, make([]byte, 32)) {
		t.Error("a key of its own outlives the session")
	}
	p.accounts.release(newAccount(login))
}
