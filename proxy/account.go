package proxy

import (
	"slices"
	"strings"
	"sync"
	"weak"

	"holdfast/pgwire"
)

// account is who a client is and what it asked for at login. Sessions that are the same in this
// share one, which nobody changes; the keys in it are wiped with the last of them.
type account struct {
	login []pgwire.Param
	cred  pgwire.Credentials
	refs  int // sessions that have it; under the lock of accounts

	// owner has the names that the server takes those of the login for. It and key tell which
	// connections of the pool are of use; isApart that none is.
	owner   poolOwner
	key     string
	isApart bool
	rule    *sessionRule // of session_limits; nil: the general limits
}

// newAccount is one of a client that has not proved anything yet.
func newAccount(login []pgwire.Param) *account {
	a := &account{login: login}
	for _, p := range login {
		switch {
		case p.Name == "user":
			a.owner.user = p.Value
		case p.Name == "database":
			a.owner.database = p.Value
		case strings.EqualFold(p.Name, "session_authorization"):
			a.isApart = true
		}
	}
	if a.owner.database == "" {
		a.owner.database = a.owner.user
	}
	a.owner.user, a.owner.database = nameOfLogin(a.owner.user), nameOfLogin(a.owner.database)
	return a
}

// poolLogin is the startup packet in an order of its own: some drivers send the parameters in any
// order, which makes no difference to the server. Each is for itself, but for
// session_authorization, which also sets the role. Of names that mean the same setting the last one
// counts: these keep their order.
func (a *account) poolLogin() string {
	login := slices.Clone(a.login)
	slices.SortStableFunc(login, func(a, b pgwire.Param) int {
		return strings.Compare(settingNamed(a.Name), settingNamed(b.Name))
	})
	return string(pgwire.AppendStartup(nil, pgwire.Protocol3, login))
}

// settingNamed is the setting that PostgreSQL takes a name for: without regard to case, and with
// names of older versions (map_old_guc_names in guc.c).
func settingNamed(name string) string {
	switch name = strings.ToLower(name); name {
	case "sort_mem":
		return "work_mem"
	case "vacuum_mem":
		return "maintenance_work_mem"
	case "ssl_ecdh_curve":
		return "ssl_groups"
	}
	return name
}

// sharedAccountsMax bounds the accounts that are looked at for sharing.
const sharedAccountsMax = 64

// accounts are those that others may have as well. Safe for concurrent use.
type accounts struct {
	mu   sync.Mutex
	list []weak.Pointer[account] // the last used first
}

// share is the account with those credentials: one that another session has, or a, which is the
// caller's own until then.
func (l *accounts) share(a *account, cred pgwire.Credentials) *account {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.list {
		have := w.Value()
		if have == nil || !slices.Equal(have.login, a.login) ||
			string(have.cred.ServerKey) != string(cred.ServerKey) ||
			string(have.cred.ClientKey) != string(cred.ClientKey) {
			continue
		}
		copy(l.list[1:i+1], l.list[:i])
		l.list[0] = w
		have.refs++
		return have
	}
	a.cred, a.key, a.refs = cred, a.poolLogin(), 1
	if len(l.list) < sharedAccountsMax {
		l.list = append(l.list, weak.Pointer[account]{})
	}
	copy(l.list[1:], l.list)
	l.list[0] = weak.Make(a)
	return a
}

// hold keeps the keys of an account for somebody who is no session, until release; false if nobody
// has it (any more).
func (l *accounts) hold(a *account) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.refs == 0 {
		return false
	}
	a.refs++
	return true
}

// release wipes the keys of an account that no session has any more.
func (l *accounts) release(a *account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.refs--; a.refs > 0 {
		return
	}
	l.list = slices.DeleteFunc(l.list, func(w weak.Pointer[account]) bool { return w.Value() == a })
	a.cred.Wipe()
}
