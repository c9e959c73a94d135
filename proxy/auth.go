package proxy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"

	"go.uber.org/zap"

	"holdfast/pgwire"
)

// login is who a client says it is.
type login struct {
	user, database string
	// replication is a physical replication connection.
	replication bool
}

// client is what the rules are asked about.
func (d *door) client(who login) hbaClient {
	c := hbaClient{local: d.isLocal(), tls: d.tls != nil, user: who.user, database: who.database,
		replication: who.replication}
	if a, ok := d.peer.(*net.TCPAddr); ok {
		c.addr = a.AddrPort().Addr().WithZone("").Unmap()
	}
	return c
}

// authenticate checks the client as the first rule for it asks, and returns with what the proxy
// can log in to servers as this user.
func (d *door) authenticate(ctx context.Context, who login) (pgwire.Credentials, error) {
	p := d.proxy
	client, err := d.knowRoles(ctx, d.client(who))
	if err != nil {
		p.log.Info("roles of a user could not be looked up", zap.Error(err))
		return pgwire.Credentials{}, errNoPrimaryLogin()
	}
	rule, ok := matchHBA(p.hba, client)
	if !ok || rule.method == methodReject {
		return pgwire.Credentials{}, errNotAllowed(client, ok)
	}
	d.from = client.addr
	if err := d.mayTry(); err != nil {
		return pgwire.Credentials{}, err
	}
	cred, err := d.prove(ctx, rule, client)
	d.r.Wipe() // a password, or what gives a key away
	var pe *pgwire.Error
	switch {
	case err == nil:
		return cred, nil
	case errors.Is(err, errNotProved):
		p.log.Debug("authentication failed", zap.String("user", who.user), zap.Error(err))
		p.metrics.authFailures.WithLabelValues(rule.method).Inc()
		p.guesses.failed(client.addr)
		p.cache.doubt(who.user)
		if d.judged != nil {
			until, _ := ctx.Deadline()
			if err := p.stands(until, who.user, *d.judged); err != nil {
				return pgwire.Credentials{}, err
			}
		}
		return pgwire.Credentials{}, errAuthFailed(rule.method, who.user)
	case errors.As(err, &pe):
		return pgwire.Credentials{}, fatal(pe)
	}
	return pgwire.Credentials{}, err
}

// errNotProved is a client that did not prove that it is who it says.
var errNotProved = errors.New("not proved")

// prove runs the method of a rule.
func (d *door) prove(ctx context.Context, rule hbaRule, c hbaClient,
) (cred pgwire.Credentials, err error) {
	if rule.clientCert != "" || rule.method == methodCert {
		if err := d.certificate(rule, c.user); err != nil {
			return cred, err
		}
	}
	if rule.method == methodTrust || rule.method == methodCert {
		return d.serverCredentials(c.user), nil
	}
	e, err := d.proxy.secretOf(ctx, c.user)
	if err != nil {
		d.proxy.log.Info("secret could not be looked up", zap.Error(err))
		return cred, errNoPrimaryLogin()
	}
	d.judged = &e
	stored, ok := e.secret, e.ok
	var secret pgwire.ScramSecret
	isMD5 := ok && pgwire.IsMD5Secret(stored)
	if ok && !isMD5 {
		if secret, err = pgwire.ParseScramSecret(stored); err != nil {
			ok = false
		}
	}
	switch {
	case rule.method == methodPassword:
		return d.password(c.user, stored, secret, ok)
	case rule.method == methodMD5 && isMD5:
		return d.md5(stored)
	case isMD5 || err != nil:
		d.proxy.log.Warn("role has no scram-sha-256 secret", zap.String("user", c.user))
		ok = false
	}
	if !ok {
		secret = d.proxy.mock.Secret(c.user)
	}
	// As in PostgreSQL, md5 is scram-sha-256 where the secret is one, and where there is no role.
	cred, err = d.scram(pgwire.NewScramServer(secret, ok))
	cred.ServerKey = secret.ServerKey
	return cred, err
}

// certificate checks the client's certificate, of which the handshake has checked who signed it.
func (d *door) certificate(rule hbaRule, user string) error {
	if d.tls == nil || len(d.tls.VerifiedChains) == 0 {
		return pgwire.NewError(pgwire.CodeInvalidAuth,
			"connection requires a valid client certificate")
	}
	name := d.tls.PeerCertificates[0].Subject.CommonName
	if rule.clientCert == "verify-ca" && rule.method != methodCert {
		return nil
	}
	if !mayBe(d.proxy.userMaps, rule.userMap, name, user) {
		return fmt.Errorf("certificate of another user: %w", errNotProved)
	}
	return nil
}

// serverCredentials are those of a client that has given none away: configured ones, or none, for a
// server that trusts the proxy's address or takes its certificate for any user.
func (d *door) serverCredentials(user string) pgwire.Credentials {
	secret, ok := d.proxy.tls.get().users[user]
	switch {
	case ok && pgwire.IsMD5Secret(secret):
		return pgwire.Credentials{MD5: secret}
	case ok:
		return pgwire.Credentials{Password: secret}
	}
	return pgwire.Credentials{}
}

// password asks for the password itself. It is not kept: what was stored of it, or can be derived,
// is enough for the server.
func (d *door) password(user, stored string, secret pgwire.ScramSecret, ok bool,
) (cred pgwire.Credentials, err error) {
	if err := d.send(pgwire.AppendAuthCleartext(nil)); err != nil {
		return cred, err
	}
	body, err := d.answer()
	if err != nil {
		return cred, err
	}
	given, err := pgwire.ParsePassword(body)
	if err != nil {
		return cred, err
	}
	if ok && pgwire.IsMD5Secret(stored) {
		if !pgwire.CheckMD5Secret(stored, user, given) {
			return cred, errNotProved
		}
		return pgwire.Credentials{MD5: stored}, nil
	}
	if !ok {
		secret = d.proxy.mock.Secret(user) // as much work as for one that exists
	}
	key, err := secret.CheckPassword(given)
	if err != nil || !ok {
		return cred, errNotProved
	}
	return pgwire.Credentials{ClientKey: key, ServerKey: secret.ServerKey}, nil
}

// md5 runs the challenge of the method md5.
func (d *door) md5(stored string) (cred pgwire.Credentials, err error) {
	var salt [4]byte
	_, _ = rand.Read(salt[:])
	if err := d.send(pgwire.AppendAuthMD5(nil, salt)); err != nil {
		return cred, err
	}
	body, err := d.answer()
	if err != nil {
		return cred, err
	}
	given, err := pgwire.ParsePassword(body)
	if err != nil {
		return cred, err
	}
	want := pgwire.MD5Response(stored, salt[:])
	if subtle.ConstantTimeCompare(given, []byte(want)) != 1 {
		return cred, errNotProved
	}
	return pgwire.Credentials{MD5: stored}, nil
}

// scram runs SCRAM-SHA-256, against the secret that PostgreSQL itself has, and keeps the ClientKey
// of the proof: with it the proxy can log in as this user.
func (d *door) scram(sc *pgwire.ScramServer) (cred pgwire.Credentials, err error) {
	sc.Bind(d.binding)
	if err := d.send(pgwire.AppendAuthSASL(nil, sc.Mechanisms()...)); err != nil {
		return cred, err
	}
	body, err := d.answer()
	if err != nil {
		return cred, err
	}
	mech, first, err := pgwire.ParseSASLInitial(body)
	if err != nil {
		return cred, err
	}
	if err := sc.Choose(mech); err != nil {
		return cred, err
	}
	reply, err := sc.First(first)
	if err != nil {
		return cred, err
	}
	if err := d.send(pgwire.AppendAuthSASLContinue(nil, reply)); err != nil {
		return cred, err
	}
	if body, err = d.answer(); err != nil {
		return cred, err
	}
	reply, key, err := sc.Final(body)
	if errors.Is(err, pgwire.ErrScramFailed) {
		return cred, errNotProved
	}
	if err != nil {
		return cred, err
	}
	cred.ClientKey = key
	return cred, d.send(pgwire.AppendAuthSASLFinal(nil, reply))
}

// mayTry refuses a client whose address has spent its failed logins.
func (d *door) mayTry() error {
	if !d.proxy.guesses.isSpent(d.from) {
		return nil
	}
	d.proxy.metrics.refused.WithLabelValues("auth_failures").Inc()
	return errTooManyFailures()
}

// answer reads the client's answer to a request. Before anybody looks at it, the address is judged
// again: many may have begun at the same time.
func (d *door) answer() ([]byte, error) {
	typ, body, err := d.r.ReadMessage()
	if err != nil {
		var pe *pgwire.Error
		if errors.As(err, &pe) {
			return nil, pe
		}
		return nil, errClientGone
	}
	if typ != pgwire.CliPassword {
		return nil, pgwire.NewError(pgwire.CodeProtocolViolation,
			fmt.Sprintf("expected a password message, got message type %q", typ))
	}
	return body, d.mayTry()
}

func (d *door) send(p []byte) error {
	if _, err := d.conn.Write(p); err != nil {
		return errClientGone
	}
	return nil
}

func errAuthFailed(method, user string) *pgwire.Error {
	if method == methodCert {
		return fatal(pgwire.NewError(pgwire.CodeInvalidAuth,
			fmt.Sprintf("certificate authentication failed for user %q", user)))
	}
	return fatal(pgwire.NewError(pgwire.CodeInvalidPassword,
		fmt.Sprintf("password authentication failed for user %q", user)))
}

// errNotAllowed is PostgreSQL's own text, by which people find what it is about.
func errNotAllowed(c hbaClient, rejected bool) *pgwire.Error {
	host, secure, what := "[local]", "no encryption", "no pg_hba.conf entry for"
	if !c.local {
		host = c.addr.String()
	}
	if c.tls {
		secure = "SSL encryption"
	}
	if rejected {
		what = "pg_hba.conf rejects connection for"
	}
	to := fmt.Sprintf("user %q, database %q", c.user, c.database)
	if c.replication {
		what, to = what+" replication connection from", fmt.Sprintf("user %q", c.user)
	}
	e := pgwire.NewError(pgwire.CodeInvalidAuth,
		fmt.Sprintf("%s host %q, %s, %s", what, host, to, secure))
	e.Detail = "The rules are those of proxy.hba."
	return fatal(e)
}

func errTooManyFailures() *pgwire.Error {
	e := pgwire.NewError(pgwire.CodeTooManyConnections, "too many failed logins from this address")
	e.Hint = "See proxy.auth_failures_max."
	return fatal(e)
}
