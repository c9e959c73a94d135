package proxy

// CarriedBytes is what temporary tables between two primaries take.
func CarriedBytes(p *Proxy) int64 { return p.carried.Load() }
