package pgwire
