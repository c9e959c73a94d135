package proxy

// ForgetForTest drops what is known of roles, as time would.
func (p *Proxy) ForgetForTest(users ...string) {
	for _, u := range users {
		p.cache.forget(u)
	}
}

// KnowsLoginRole tells that a proxy has a list of roles with that one.
func KnowsLoginRole(p *Proxy, user string) bool {
	p.cache.mu.Lock()
	defer p.cache.mu.Unlock()
	_, ok := p.cache.roles.entries[user]
	return ok
}
