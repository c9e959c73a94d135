package proxy

import "context"

// CatalogStatement is a statement for OnlyReads.
type CatalogStatement struct {
	Text       string
	Conforming bool
	Types      []uint32
}

// OnlyReads is Proxy.onlyReads for tests.
func OnlyReads(ctx context.Context, p *Proxy, pr *Primary, database string,
	sqls ...CatalogStatement,
) (bool, error) {
	in := make([]statement, len(sqls))
	for i, s := range sqls {
		in[i] = statement{text: s.Text, conforming: s.Conforming, types: s.Types}
	}
	return p.onlyReads(ctx, pr, database, in)
}

// ForgetAnswers makes the next OnlyReads ask.
func ForgetAnswers(p *Proxy) {
	p.catalogues.mu.Lock()
	defer p.catalogues.mu.Unlock()
	clear(p.catalogues.answers)
}

// CatalogConnections counts the databases to which there is a connection.
func CatalogConnections(p *Proxy) int {
	p.catalogues.mu.Lock()
	defer p.catalogues.mu.Unlock()
	return len(p.catalogues.at)
}

// DropIdle is what the proxy does from time to time.
func DropIdle(p *Proxy) { p.catalogues.dropIdle(0); p.catalogues.forgetOld() }

// IsHarmlessVolatile and RunsQueries show the lists.
func IsHarmlessVolatile(name string) bool { return harmlessVolatile[name] }
func RunsQueries(name string) bool        { return runsQueries[name] }

// SettingNames is Proxy.findSetters for tests.
func SettingNames(ctx context.Context, p *Proxy, pr *Primary, database string) ([]string, error) {
	found, err := p.findSetters(ctx, pr, database)
	if err != nil {
		return nil, err
	}
	return found.settings, nil
}

// KnowsSetter tells that a proxy knows of a function that sets settings.
func KnowsSetter(p *Proxy, database, function string) bool {
	return p.settersOf(database).calledIn("insert "+function, true, &effect{})
}

// KnowsSetters tells that a proxy knows which functions of a database set something.
func KnowsSetters(p *Proxy, database string) bool { return p.settersOf(database).known() != nil }
