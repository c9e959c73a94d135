package election

// mayTakeOver tells that a request may replace the change that stands: a failover that has chosen
// nobody yet, or a start of the old primary that fails, may wait for ever for what was lost, unless
// somebody accepts the loss.
func mayTakeOver(it Intent, r Request) bool {
	isWaiting := it.Kind == IntentRestart || it.Kind == IntentFailover && it.To == ""
	return r.Kind == RequestFailover && r.AcceptLoss && isWaiting &&
		!(it.AcceptLoss && it.Only == r.Member)
}

// takesOver is the request that replaces this change; nil if there is none. One whose
// preconditions do not hold is refused.
func (t *transition) takesOver() *Request {
	s, _ := t.c.co.State()
	in := t.c.input(s)
	for _, r := range in.Requests {
		if in.State.Intent == nil || !mayTakeOver(*in.State.Intent, r) {
			continue
		}
		_, checks := CheckRequest(in, t.c.policy, r)
		if why := firstWrong(checks); why != "" {
			t.c.refuseRequests([]RequestRefusal{{r.ID, why}})
			continue
		}
		return &r
	}
	return nil
}

// takeOver goes on under a further epoch with what the operator accepts (DESIGN.md I71).
func (t *transition) takeOver(r Request) error {
	it := Intent{Kind: IntentFailover, Only: r.Member, AcceptLoss: true,
		Request: r.Token}
	epoch, err := t.replaceWith(it, t.it.Cause+"; then an operator asked for "+r.Member+
		" and accepts the loss of commits")
	if err != nil {
		t.c.notBegun(t.lead, r.ID, err)
		return err
	}
	t.c.markRequest(r.ID, epoch)
	return nil
}
