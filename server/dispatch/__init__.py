"""Who gets which run: claim streams and long polls, and the claimers that serve them (design 4, 5).

Everything here lives in one process and on its event loop; what must outlive it is in Postgres.
May import transitions, identity, domain and store; handlers import it.
"""
