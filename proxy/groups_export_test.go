package proxy

// ForgetForTest drops what is known of roles, as time would.
func (p *Proxy) ForgetForTest(users ...string) {
	for _, u := range users {
		p.cache.forget(u)
	}
}
