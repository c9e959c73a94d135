package proxy

// CarriedBytes is what temporary tables between two primaries take.
func CarriedBytes(p *Proxy) int64 { return p.carried.Load() }

// KnowsMaker tells that a function of that name is known to make temporary tables, or cursors WITH
// HOLD.
func KnowsMaker(p *Proxy, database, function string) bool {
	var e effect
	p.settersOf(database).calledIn("insert "+function, true, &e)
	return e.makes
}
